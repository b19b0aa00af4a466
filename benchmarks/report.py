"""How results are told: tables, a summary, and a JSON file for comparison with a later run."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.providers import OURS, YARDSTICKS
from benchmarks.runner import Result, Settings, Timing
from benchmarks.terminal import Table

LEAST_RIGHT = 0.75
"""A near tie that float32 decides otherwise than float64 may move the targets of an image, not most of its tokens."""


def summary(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """For each operator: the median and the least speed-up over PyTorch's best, and fraction of the roofline."""
    by_operator: dict[str, list[Result]] = {}
    for result in results:
        if result.speedup(result.strongest) is not None:
            by_operator.setdefault(result.case.op, []).append(result)
    return {op: _summary(own) for op, own in by_operator.items()}


def _summary(results: Sequence[Result]) -> dict[str, float]:
    speedups = [result.speedup(result.strongest) for result in results]
    fractions = [result.speedup(result.roofline) for result in results if result.roofline]
    numbers = {"median": statistics.median(speedups), "least": min(speedups), "cases": len(speedups)}
    if fractions:
        numbers |= {"median_of_roofline": statistics.median(fractions), "least_of_roofline": min(fractions)}
    return numbers


def wrong(results: Iterable[Result]) -> list[str]:
    """The cases for which a result of our own is not right."""
    return [
        result.case.name
        for result in results
        if any(name in result.timings and result.timings[name].rows_right < LEAST_RIGHT for name in OURS)
    ]


def failures(results: Iterable[Result]) -> list[str]:
    """What could not be measured, and why; the cases of a provider that failed for the same reason in one line."""
    cases: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for name, why in result.failures.items():
            cases.setdefault((name, why), []).append(result.case.name)
    return [f"{name}: {why} ({', '.join(where)})" for (name, why), where in cases.items()]


def we_failed(results: Iterable[Result]) -> bool:
    """Whether there is a case that this library could not do."""
    return any(name in result.failures for result in results for name in OURS)


def _case_as_json(result: Result) -> dict[str, Any]:
    case = dataclasses.asdict(result.case) | {"dtype": str(result.case.dtype).removeprefix("torch.")}
    others = [name for name in result.timings if name not in OURS]
    return {
        "name": result.case.name,
        **case,
        "bytes_moved": result.case.bytes_moved,
        "input_sets": result.input_sets,
        "seconds": {name: dataclasses.asdict(timing) for name, timing in result.timings.items()},
        "gigabytes_per_second": {name: result.bandwidth(name) / 1e9 for name in result.timings},
        "ratios": {name: result.speedup(name) for name in others if result.our_best},
        "failures": dict(result.failures),
    }


def as_json(results: Sequence[Result], settings: Settings, environment: dict[str, Any]) -> dict[str, Any]:
    """Everything, ready for a file."""
    return {
        "environment": environment,
        "settings": dataclasses.asdict(settings),
        "summary": summary(results),
        "cases": [_case_as_json(result) for result in results],
    }


def _time(seconds: float) -> str:
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.2f} ms"
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-4 else f"{seconds * 1e6:.0f} µs"


def _with_spread(timing: Timing) -> str:
    spread = (timing.third_quartile - timing.first_quartile) / timing.median / 2
    return f"{_time(timing.median)} ±{spread:.0%}"


def _names(results: Iterable[Result]) -> list[str]:
    """Everybody who was to be measured, in order."""
    return list(dict.fromkeys(name for result in results for name in (*result.timings, *result.failures)))


def _time_of(result: Result, name: str) -> str:
    if name in result.timings:
        return _with_spread(result.timings[name])
    return "failed" if name in result.failures else "-"


def times(results: Sequence[Result]) -> Table:
    """What each provider took."""
    names = _names(results)
    rows = [
        [
            result.case.name,
            *(_time_of(result, name) for name in names),
        ]
        for result in results
    ]
    return Table(("case", *names), rows, "medians ± half the interquartile range; inputs cold")


def ratios(results: Sequence[Result]) -> Table:
    """How this library compares: with memory, and with each other provider."""
    names = _names(results)
    others = [name for name in names if name not in (*OURS, *YARDSTICKS)]
    rooflines = [name for name in YARDSTICKS if name in names]
    columns = (
        "case",
        "GB/s",
        *(f"of a {name}" for name in rooflines),
        "x strongest",
        *(f"x {name}" for name in others),
    )
    rows = []
    for result in results:
        best = result.our_best
        rows.append(
            [
                result.case.name,
                f"{result.bandwidth(best) / 1e9:.1f}" if best else "-",
                *(f"{share:.0%}" if (share := result.speedup(name)) else "-" for name in rooflines),
                *(f"{ratio:.1f} x" if (ratio := result.speedup(name)) else "-" for name in (result.strongest, *others)),
                ", ".join(
                    f"{result.timings[name].rows_right:.0%}" if name in result.timings else "-" for name in names
                ),
            ]
        )
    right = f"rows right ({', '.join(names)})"
    of_us = "ours-graph where it was measured" if "ours-graph" in names else "ours"
    return Table((*columns, right), rows, f"of {of_us}: times as fast as the others; rows right against float64")


def _of_bandwidth(numbers: dict[str, float]) -> str:
    if "median_of_roofline" not in numbers:
        return ""
    return (
        f"; {numbers['median_of_roofline']:.0%} of the machine's bandwidth in the median, "
        f"at least {numbers['least_of_roofline']:.0%}"
    )


def summary_lines(results: Iterable[Result]) -> list[str]:
    """A line for each operator."""
    return [
        f"{op}: {numbers['median']:.1f} times as fast as PyTorch's best form (median of {numbers['cases']} cases), "
        f"at least {numbers['least']:.1f} times{_of_bandwidth(numbers)}"
        for op, numbers in summary(results).items()
    ]
