"""What a figure depends on besides the code, as far as it can be told without naming a machine or a path."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.places import ROOT
from benchmarks.timers import EventTimer, Timer
from visionzip_ext import _C


def processor() -> str:
    """The CPU's name."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def load() -> float:
    """How many programs wanted a CPU during the last minute, for each CPU."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def _answer(*command: str) -> str | None:
    """The first line that a program prints; None where it is missing or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return next(iter(done.stdout.splitlines()), "").strip() or None


def revision() -> str | None:
    """The git revision that was measured; with "-dirty" where files differ from it."""
    return _answer("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _gpu(timer: EventTimer) -> dict[str, Any]:
    """What only a GPU has."""
    properties = torch.cuda.get_device_properties(timer.device)
    return {
        "device": properties.name,
        "processor": processor(),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "driver": _answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda,
        "nvcc": _C.build_info()["cuda_version"],
        "cuda_architectures": _C.build_info()["cuda_architectures"],
        "triton": _version("triton"),
        "timer_seconds_for_nothing": timer.own_seconds(),
    }


def environment(timer: Timer) -> dict[str, Any]:
    """Everything, for the file of results."""
    return {
        "device": processor(),
        "last_level_cache_bytes": timer.cache_bytes,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "instruction_set": _C.cpu_isa(),
        "torch_instruction_set": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "revision": revision(),
        "load_before": round(load(), 2),
        **(_gpu(timer) if isinstance(timer, EventTimer) else {}),
    }
