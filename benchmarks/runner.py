"""How a case is timed.

The providers take turns, one call each a round, until the time is up, so that whatever slows the machine down slows
them alike; what counts are medians. Each call finds its inputs cold: they rotate over several sets, together twice as
large as the last cache level, and no two providers follow each other on the same set. Beside each timing stands how
much of the provider's result is right.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cases import Case, Inputs
from benchmarks.providers import Provider
from visionzip_ext import reference

DEFAULT_CACHE_BYTES = 32 << 20  # where the system does not tell
MOST_INPUT_SETS = 64
IMAGES_CHECKED = 2


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
    """A case and what each provider took for it, by the provider's name."""

    case: Case
    timings: Mapping[str, Timing]
    input_sets: int

    def speedup(self, over: str = "recipe", of: str = "ours") -> float:
        """How many times faster one provider is than another, by medians of this run."""
        return self.timings[over].median / self.timings[of].median


def last_level_cache() -> int:
    """Its size in bytes."""
    sizes = [DEFAULT_CACHE_BYTES]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        if text.endswith("K"):
            sizes.append(int(text[:-1]) << 10)
    return max(sizes)


def input_sets(case: Case, cache_bytes: int) -> int:
    """How many sets of inputs make sure that a call finds none of its own in a cache."""
    return min(MOST_INPUT_SETS, max(2, -(-2 * cache_bytes // case.bytes_moved)))


def quartiles(seconds: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    return tuple(statistics.quantiles(seconds, n=4, method="inclusive"))


def rows_right(tokens: Tensor, expected: Tensor) -> float:
    """The share of the rows of `tokens` (B, k + m, C) that stand in `expected` (float64), up to tokens' rounding.

    Rows are looked up, not compared by place: a single near tie decided otherwise shifts all rows behind it.
    """
    tolerance = 8 * torch.finfo(tokens.dtype).eps
    tokens = tokens.double()
    nearest = torch.cdist(tokens, expected).amin(-1)
    return (nearest <= tolerance * tokens.norm(dim=-1)).double().mean().item()


def float64_tokens(case: Case, inputs: Inputs) -> Tensor:
    """The reference's tokens in float64."""
    wide = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    rest = (case.k, case.m)
    if case.op == "merge":
        return reference.merge(wide["hidden"], wide["assignment"], *rest, case.merge)
    if case.op == "zip_qk":
        tensors = (wide["hidden"], wide["queries"], wide["keys"])
        return reference.zip_qk(*tensors, *rest, case.scale, case.has_cls, case.merge)[0]
    # Of attention with CLS only its row counts; the float64 copy of all would be large.
    attn = inputs["attn"][:, :, 0] if case.has_cls else inputs["attn"]
    return reference.zip(wide["hidden"], wide["keys"], attn.double(), *rest, case.has_cls, case.merge)[0]


def _share_right(case: Case, provider: Provider, inputs: Inputs) -> float:
    some = {name: x[:IMAGES_CHECKED] for name, x in inputs.items()}
    return rows_right(provider(case, inputs)[:IMAGES_CHECKED], float64_tokens(case, some))


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@torch.no_grad()
def measure(case: Case, providers: Mapping[str, Provider], device: torch.device, settings: Settings) -> Result:
    """Time every provider on one case."""
    sets = [case.inputs(device, seed) for seed in range(input_sets(case, last_level_cache()))]
    right = {name: _share_right(case, provider, sets[0]) for name, provider in providers.items()}
    taken: dict[str, list[float]] = {name: [] for name in providers}
    apart = max(1, len(sets) // len(providers))
    deadline = time.perf_counter() + settings.seconds
    round_ = 0
    while round_ < settings.warm_up_rounds + settings.least_rounds or time.perf_counter() < deadline:
        for place, (name, provider) in enumerate(providers.items()):
            inputs = sets[(round_ + place * apart) % len(sets)]
            seconds = _seconds(lambda provider=provider, inputs=inputs: provider(case, inputs))
            if round_ >= settings.warm_up_rounds:
                taken[name].append(seconds)
        round_ += 1
    timings = {}
    for name, seconds in taken.items():
        first, median, third = quartiles(seconds)
        timings[name] = Timing(median, first, third, len(seconds), right[name])
    return Result(case, timings, len(sets))
