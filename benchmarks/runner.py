"""How a case is measured.

The providers take turns, one call each a round, until the time is up, so that whatever slows the machine down slows
them alike; what counts are medians. Each call finds its inputs cold (timers.py), and no two providers follow each other
on the same set of inputs. Beside each timing stands how much of the provider's result is right. A provider that cannot
do a case is part of the result, with the reason.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.cases import Case, Inputs, first_images
from benchmarks.providers import STRONGEST, YARDSTICKS, Attention, Call, Copy, Provider, Read
from benchmarks.timers import Timer
from visionzip_ext import packed_reference, reference

IMAGES_CHECKED = 2
REASON_LENGTH = 300

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How long to measure."""

    seconds: float = 3.0
    """For each case, all providers together; the least number of rounds may take longer."""
    least_rounds: int = 7
    warm_up_rounds: int = 2


@dataclass(frozen=True)
class Timing:
    """One provider's calls in seconds: the median and the quartiles; and the share of its rows that are right."""

    median: float
    first_quartile: float
    third_quartile: float
    calls: int
    rows_right: float


@dataclass(frozen=True)
class Result:
    """A case and what each provider took for it, by the provider's name; or why it could not do it."""

    case: Case
    timings: Mapping[str, Timing]
    input_sets: int
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def our_best(self) -> str | None:
        """The provider that stands for this library: the CUDA graph where one was recorded."""
        return next((name for name in ("ours-graph", "ours") if name in self.timings), None)

    @property
    def strongest(self) -> str | None:
        """PyTorch's fastest provider in this case."""
        there = [name for name in STRONGEST if name in self.timings]
        return min(there, key=lambda name: self.timings[name].median, default=None)

    @property
    def roofline(self) -> str | None:
        """The yardstick of memory."""
        return next((name for name in YARDSTICKS if name in self.timings), None)

    def speedup(self, over: str | None) -> float | None:
        """How many times as fast this library is as another provider, by medians of this run."""
        if self.our_best is None or over not in self.timings:
            return None
        return self.timings[over].median / self.timings[self.our_best].median

    def bandwidth(self, name: str) -> float:
        """Bytes a second that a provider moves, of those that have to be moved."""
        return self.case.bytes_moved / self.timings[name].median


def quartiles(seconds: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    return tuple(statistics.quantiles(seconds, n=4, method="inclusive"))


def rows_right(tokens: Tensor, expected: Tensor, roundings: int = 8) -> float:
    """The share of the rows of `tokens` (B, k + m, C) that stand in `expected` (float64), up to tokens' rounding.

    Rows are looked up, not compared by place: a single near tie decided otherwise shifts all rows behind it.
    """
    tolerance = roundings * torch.finfo(tokens.dtype).eps
    tokens = tokens.double()
    nearest = torch.cdist(tokens, expected).amin(-1)
    return (nearest <= tolerance * tokens.norm(dim=-1)).double().mean().item()


def float64_tokens(case: Case, inputs: Inputs) -> Tensor:
    """The reference's tokens in float64."""
    wide = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    rest = (case.k, case.m)
    if case.op == "zip_packed":
        tensors = (wide["hidden"], wide["keys"], wide["cu_seqlens"])
        options = {"queries": wide["queries"], "scale": case.scale, "group": case.group, "merge": case.merge}
        options["policy"] = case.policy
        return packed_reference.zip_packed(*tensors, *case.budgets, **options)[0].unsqueeze(0)
    if case.op == "merge":
        return reference.merge(wide["hidden"], wide["assignment"], *rest, case.merge)
    if case.op == "zip_qk":
        tensors = (wide["hidden"], wide["queries"], wide["keys"])
        return reference.zip_qk(*tensors, *rest, case.scale, case.has_cls, case.merge, policy=case.policy)[0]
    # Of attention with CLS only its row counts; the float64 copy of all would be large.
    attn = inputs["attn"][:, :, 0] if case.has_cls else inputs["attn"]
    return reference.zip(wide["hidden"], wide["keys"], attn.double(), *rest, case.has_cls, case.merge, case.policy)[0]


def _share_right(case: Case, call: Call, expected: Tensor) -> float:
    result = call()
    if isinstance(call, Copy):
        return float(torch.equal(call.source, result))
    if isinstance(call, Attention):
        return 1.0
    if isinstance(call, Read):
        return float(result == call.source.numel())
    return rows_right(result.unsqueeze(0) if case.lengths else result[:IMAGES_CHECKED], expected)


def _attempt(failures: dict[str, str], name: str, action: Callable[[], T]) -> T | None:
    """The action's result; or None if it raised, and then the reason is kept."""
    try:
        return action()
    except Exception as error:  # whatever a compiler, a driver or an allocator may raise
        failures[name] = reason(error)
        return None


def reason(error: Exception) -> str:
    """An exception in one line."""
    words = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {words}"[:REASON_LENGTH]


def not_measured(case: Case, names: Iterable[str], why: str) -> Result:
    """A case that nobody could do."""
    return Result(case, {}, 0, dict.fromkeys(names, why))


@torch.no_grad()
def measure(case: Case, providers: Mapping[str, Provider], timer: Timer, settings: Settings) -> Result:
    """Time every provider on one case."""
    try:
        timer.between_cases()
        sets = [case.inputs(timer.device, seed) for seed in range(timer.input_sets(case))]
        expected = float64_tokens(case, first_images(case, sets[0], IMAGES_CHECKED))
    except Exception as error:  # for want of memory, or because of what an earlier case did to the GPU
        return not_measured(case, providers, f"its inputs: {reason(error)}")
    failures: dict[str, str] = {}
    calls: dict[str, list[Call]] = {}
    right: dict[str, float] = {}
    for name, provider in providers.items():
        own = _attempt(failures, name, lambda provider=provider: [provider(case, inputs) for inputs in sets])
        share = own and _attempt(failures, name, lambda own=own: _share_right(case, own[0], expected))
        if share is not None:
            calls[name], right[name] = own, share
    taken = _take_turns(calls, failures, timer, settings)
    return Result(case, _timings(taken, right), len(sets), failures)


def _take_turns(
    calls: Mapping[str, list[Call]], failures: dict[str, str], timer: Timer, settings: Settings
) -> dict[str, list[float]]:
    """Seconds of each provider's calls; whoever raises is out."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    deadline = time.perf_counter() + settings.seconds
    round_ = 0
    while taken and (round_ < settings.warm_up_rounds + settings.least_rounds or time.perf_counter() < deadline):
        for place, name in enumerate(list(taken)):
            own = calls[name]
            call = own[(round_ + place * max(1, len(own) // len(calls))) % len(own)]
            seconds = _attempt(failures, name, lambda call=call: timer.seconds(call))
            if seconds is None:
                del taken[name]
            elif round_ >= settings.warm_up_rounds:
                taken[name].append(seconds)
        round_ += 1
    return taken


def _timings(taken: Mapping[str, list[float]], right: Mapping[str, float]) -> dict[str, Timing]:
    timings = {}
    for name, seconds in taken.items():
        first, median, third = quartiles(seconds)
        timings[name] = Timing(median, first, third, len(seconds), right[name])
    return timings
