"""`python -m benchmarks.encoder`: what a whole encoder with compressed output costs, beside the released way."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.encoder_memory import peak_bytes, peak_bytes_on_gpu
from benchmarks.encoder_providers import PROVIDERS, EncoderCase, encoder_cases, quick_encoder_cases
from benchmarks.environment import load
from benchmarks.runner import rows_right
from benchmarks.terminal import Table, Terminal
from benchmarks.timers import timer_for

ROUNDS = {"cpu": 3, "cuda": 20}
TIME_GOAL = 0.65
MEMORY_GOAL = 0.2
"""Of the released way's."""
LEAST_ALIKE = 0.9
"""Of the rows; in float32. In lower precision the released way decides by rounded attention."""


@dataclass(frozen=True)
class Cost:
    """What was measured for a case, by the provider's name."""

    case: EncoderCase
    seconds: dict[str, list[float]]
    peak_bytes: dict[str, int]
    rows_alike: float

    @property
    def time_ratio(self) -> float:
        """Our time over the released way's, medians."""
        return statistics.median(self.seconds["ours"]) / statistics.median(self.seconds["released"])

    @property
    def memory_ratio(self) -> float:
        """Our peak memory over the released way's."""
        return self.peak_bytes["ours"] / self.peak_bytes["released"]

    @property
    def wrong(self) -> bool:
        """Whether our tokens are others than the released way's."""
        return self.case.dtype == torch.float32 and self.rows_alike < LEAST_ALIKE

    def as_json(self) -> dict[str, Any]:
        """Ready for a file."""
        return {
            "name": self.case.name,
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
            "time_ratio": self.time_ratio,
            "memory_ratio": self.memory_ratio,
            "rows_alike": self.rows_alike,
            "wrong": self.wrong,
            "load": round(load(), 2),
        }


def rows_alike(tokens: Tensor, others: Tensor) -> float:
    """The share of the rows of `tokens` (B, n, C) that stand in `others` too, up to an encoder's rounding."""
    return rows_right(tokens, others.double(), roundings=64)


@torch.no_grad()
def measure(case: EncoderCase, rounds: int | None = None) -> Cost:
    """The providers take turns, as in runner.py."""
    timer = timer_for(case.device)
    model, pixels = case.encoder(), case.pixels(case.tiles)
    calls = {name: provider(case, model) for name, provider in PROVIDERS.items()}
    tokens = {name: call(pixels) for name, call in calls.items()}  # warms up, too
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds or ROUNDS[case.device]):
        for name, call in calls.items():
            seconds[name].append(timer.seconds(partial(call, pixels)))
    alike = rows_alike(tokens["ours"], tokens["released"])
    peaks = {
        name: peak_bytes_on_gpu(case, name, model) if case.device == "cuda" else peak_bytes(case, name)
        for name in PROVIDERS
    }
    return Cost(case, seconds, peaks, alike)


def table(costs: Sequence[Cost]) -> Table:
    """A row a case."""
    rows = [
        [
            cost.case.name,
            *(f"{statistics.median(seconds):.4g} s" for seconds in cost.seconds.values()),
            f"{cost.time_ratio:.2f}",
            *(f"{size / 1e6:.0f} MB" for size in cost.peak_bytes.values()),
            f"{cost.memory_ratio:.2f}",
            f"{cost.rows_alike:.0%}",
        ]
        for cost in costs
    ]
    names = list(PROVIDERS)
    columns = ("case", *names, "ratio", *(f"{name}, memory" for name in names), "ratio", "rows alike")
    return Table(columns, rows, "a whole encoder and its compression; times are medians, memory is the peak of a call")


def goals(cost: Cost) -> str:
    """Whether a case's are reached."""
    reached = {True: "reached", False: "MISSED"}
    return (
        f"{cost.case.name}: time {cost.time_ratio:.2f} of the released way's ({TIME_GOAL}: "
        f"{reached[cost.time_ratio <= TIME_GOAL]}), memory {cost.memory_ratio:.2f} ({MEMORY_GOAL}: "
        f"{reached[cost.memory_ratio <= MEMORY_GOAL]})"
    )


def measure_all(cases: Sequence[EncoderCase], terminal: Terminal) -> list[Cost]:
    """Measure and tell; minutes for a large encoder."""
    costs = [measure(case) for case in terminal.progress(cases)]
    terminal.show(table(costs))
    for cost in costs:
        terminal.say(goals(cost))
    return costs


def main(arguments: list[str] | None = None) -> int:
    """The exit status is 1 where our tokens are wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoder", description=__doc__)
    parser.add_argument("--device", choices=tuple(ROUNDS), default="cpu", help="where to measure (default: cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    parser.add_argument("--quick", action="store_true", help="a tiny encoder: a try, no figures")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write what was measured (default: to no file)")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    terminal = Terminal()
    if options.device == "cuda" and not torch.cuda.is_available():
        terminal.say("--device cuda: torch sees no GPU", style="red")
        return 2
    costs = measure_all((quick_encoder_cases if options.quick else encoder_cases)(options.device), terminal)
    if options.output:
        options.output.write_text(json.dumps({"encoder": [cost.as_json() for cost in costs]}, indent=1) + "\n")
    return int(any(cost.wrong for cost in costs))


if __name__ == "__main__":
    sys.exit(main())
