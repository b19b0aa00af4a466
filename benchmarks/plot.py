"""A picture of a file of results: times of each provider, and the fraction of the roofline where that was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.providers import YARDSTICKS

COLORS = {
    "ours": "#63b3ed",
    "ours-graph": "#1b6ca8",
    "released": "#c05621",
    "compiled": "#dd8a3c",
    "compiled-graph": "#ecc07e",
    "copy": "#8a8a8a",
    "ours-lse": "#4fd1c5",
    "best-eager": "#975a16",
    "read": "#8a8a8a",
    "sdpa": "#805ad5",
}


def draw(results: dict[str, Any], path: Path) -> str:
    """Write a PNG; says what was written, or why nothing was."""
    cases = [case for case in results["cases"] if case["seconds"]]
    if not cases:
        return "no plot: nothing was measured"
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "no plot: matplotlib is not installed"
    rooflines = {name for case in cases for name in YARDSTICKS if name in case["ratios"]}
    figure = Figure(figsize=(15 if rooflines else 10, 1.5 + 0.45 * len(cases)), layout="constrained")
    axes = figure.subplots(1, 2 if rooflines else 1, sharey=True, squeeze=False)[0]
    _draw_times(axes[0], cases)
    for name in rooflines:  # one: a device has one
        _draw_fractions(axes[1], cases, name)
    figure.suptitle(f"{results['environment']['device']}, torch {results['environment']['torch']}")
    figure.savefig(path, dpi=120)
    return f"drawn in {path}"


def _draw_times(axes: Any, cases: list[dict[str, Any]]) -> None:
    """Microseconds, on a logarithmic axis: a bar for each provider, a whisker from quartile to quartile."""
    names = list(dict.fromkeys(name for case in cases for name in case["seconds"]))
    height = 0.8 / len(names)
    for place, name in enumerate(names):
        rows = [row for row, case in enumerate(cases) if name in case["seconds"]]
        timings = [cases[row]["seconds"][name] for row in rows]
        medians = [timing["median"] * 1e6 for timing in timings]
        whiskers = [
            [(timing["median"] - timing["first_quartile"]) * 1e6 for timing in timings],
            [(timing["third_quartile"] - timing["median"]) * 1e6 for timing in timings],
        ]
        heights = [row - 0.4 + (place + 0.5) * height for row in rows]
        axes.barh(heights, medians, height, xerr=whiskers, label=name, color=COLORS[name])
    axes.set_yticks(range(len(cases)), [case["name"] for case in cases])
    axes.set_ylim(len(cases) - 0.4, -0.6)  # the first on top
    axes.set_xscale("log")
    axes.set_xlabel("microseconds, median; whiskers: quartiles")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="upper right", fontsize="small")


def _draw_fractions(axes: Any, cases: list[dict[str, Any]], roofline: str) -> None:
    """This library's share of the bandwidth of a read or a copy of the same bytes."""
    fractions = [100 * case["ratios"].get(roofline, 0) for case in cases]
    axes.barh(range(len(cases)), fractions, 0.6, color=COLORS["ours-graph"])
    axes.axvline(100, color="black", linewidth=1)
    axes.set_xlabel(f"percent of the bandwidth of a {roofline} of the same bytes")
    axes.grid(axis="x", alpha=0.3)
