"""How results are told: a table, a summary, and a JSON file for comparison with a later run."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

from benchmarks.runner import Result, Settings, Timing, last_level_cache
from visionzip_ext import _C

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

LEAST_RIGHT = 0.75
"""A near tie that float32 decides otherwise than float64 may move the targets of an image, not most of its tokens."""


def processor() -> str:
    """The CPU's name."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def slug(name: str) -> str:
    """A device's name as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def revision() -> str | None:
    """The git revision that was measured; with "-dirty" where files differ from it."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def load() -> float:
    """How many programs wanted a CPU during the last minute, for each CPU."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def environment() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    return {
        "device": processor(),
        "last_level_cache_bytes": last_level_cache(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "instruction_set": _C.cpu_isa(),
        "torch_instruction_set": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "revision": revision(),
        "load_before": round(load(), 2),
    }


def summary(results: Iterable[Result]) -> dict[str, dict[str, float]]:
    """For each operator: the median and the least speed-up over the recipe."""
    by_operator: dict[str, list[float]] = {}
    for result in results:
        if {"ours", "recipe"} <= result.timings.keys():
            by_operator.setdefault(result.case.op, []).append(result.speedup())
    return {
        op: {"median": statistics.median(speedups), "least": min(speedups), "cases": len(speedups)}
        for op, speedups in by_operator.items()
    }


def wrong(results: Iterable[Result]) -> list[str]:
    """The cases for which our own result is not right."""
    return [r.case.name for r in results if "ours" in r.timings and r.timings["ours"].rows_right < LEAST_RIGHT]


def _case_as_json(result: Result) -> dict[str, Any]:
    case = dataclasses.asdict(result.case) | {"dtype": str(result.case.dtype).removeprefix("torch.")}
    timings = {name: dataclasses.asdict(timing) for name, timing in result.timings.items()}
    return {
        "name": result.case.name,
        **case,
        "bytes_moved": result.case.bytes_moved,
        "input_sets": result.input_sets,
        "seconds": timings,
    }


def as_json(results: list[Result], settings: Settings, environment: dict[str, Any]) -> dict[str, Any]:
    """Everything, ready for a file."""
    return {
        "environment": environment,
        "settings": dataclasses.asdict(settings),
        "summary": summary(results),
        "cases": [_case_as_json(result) for result in results],
    }


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"


def _with_spread(timing: Timing) -> str:
    spread = (timing.third_quartile - timing.first_quartile) / timing.median / 2
    return f"{_time(timing.median)} ±{spread:.0%}"


def table(results: Iterable[Result]) -> Table:
    """The results, a row each."""
    results = list(results)
    names = list(results[0].timings)
    out = Table(
        box=box.SIMPLE, caption="medians ± half the interquartile range; inputs cold; rows right against float64"
    )
    out.add_column("case", no_wrap=True)
    for name in (*names, "GB/s", "speed-up", f"rows right ({', '.join(names)})"):
        out.add_column(name, justify="right")
    for result in results:
        timings = result.timings
        ours = timings.get("ours")
        out.add_row(
            result.case.name,
            *(_with_spread(timing) for timing in timings.values()),
            f"{result.case.bytes_moved / ours.median / 1e9:.1f}" if ours else "",
            f"{result.speedup():.1f} x" if {"ours", "recipe"} <= timings.keys() else "",
            ", ".join(f"{timing.rows_right:.0%}" for timing in timings.values()),
        )
    return out


def summary_lines(results: Iterable[Result]) -> list[str]:
    """A line for each operator."""
    return [
        f"{op}: {numbers['median']:.1f} times as fast as the recipe (median of {numbers['cases']} cases), "
        f"at least {numbers['least']:.1f} times"
        for op, numbers in summary(results).items()
    ]
