"""The thresholds of the planners that measured sweeps imply."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.compare import median_noise
from benchmarks.tune_sweeps import DEFAULT

Measured = Mapping[str, Any]
"""A sweep as the file has it: about, the case's sizes, and the seconds of each plan."""


@dataclass(frozen=True)
class Implied:
    """A threshold: its value in the code, the value that a file implies, and what that is read from."""

    name: str
    current: float
    value: float
    why: str


def keys_of(plan: str) -> dict[str, str]:
    """A plan's text as keys and values."""
    return {} if plan == DEFAULT else dict(item.split("=") for item in plan.split(","))


def _about(sweeps: Iterable[Measured], about: str) -> list[Measured]:
    return [sweep for sweep in sweeps if sweep["about"] == about and sweep["seconds"]]


def _median(sweep: Measured, plan: str) -> float:
    return sweep["seconds"][plan]["median"]


def is_quicker(sweep: Measured, plan: str, other: str) -> bool:
    """By more than the noise of both medians."""
    noise = sum(median_noise(sweep["seconds"][name]) for name in (plan, other))
    return _median(sweep, plan) * (1 + noise) < _median(sweep, other)


def quickest(sweep: Measured, plans: Iterable[str]) -> str | None:
    """Of these plans, as far as they were measured."""
    return min(
        (plan for plan in plans if plan in sweep["seconds"]), key=lambda plan: _median(sweep, plan), default=None
    )


def _plans(sweep: Measured, **wanted: str) -> list[str]:
    return [plan for plan in sweep["seconds"] if wanted.items() <= keys_of(plan).items()]


def _pairs(sweeps: Iterable[Measured], key: str, value: str, other: str) -> Iterable[tuple[Measured, str, str]]:
    """Plans that differ in one key alone: with its value, and with the other."""
    for sweep in sweeps:
        for plan in _plans(sweep, **{key: value}):
            twin = plan.replace(f"{key}={value}", f"{key}={other}")
            if twin in sweep["seconds"]:
                yield sweep, plan, twin


# --- the CPU's factors ------------------------------------------------------------------------------------------------


def gain(sweeps: list[Measured], plan: str, over: str) -> tuple[float, float]:
    """How many times as fast as another plan, over all cases (geometric mean), and the noise of that."""
    speedups = [_median(sweep, over) / _median(sweep, plan) for sweep in sweeps]
    noises = [median_noise(sweep["seconds"][name]) for sweep in sweeps for name in (plan, over)]
    return statistics.geometric_mean(speedups), math.hypot(*noises) / len(sweeps)


def cpu_factors(sweeps: list[Measured], current: Mapping[str, float]) -> list[Implied]:
    """Each factor's best value, if it is better than the code's beyond noise; else the code's.

    The code's own value is overridden by itself, as reading a plan's text takes microseconds.
    """
    implied = []
    for name, value in current.items():
        own = _about(sweeps, name)
        plans = [plan for plan in own[0]["seconds"] if plan != DEFAULT] if own else []
        plans = [plan for plan in plans if all(plan in sweep["seconds"] for sweep in own)]
        code = f"{name}={value:g}"
        if code not in plans:
            continue
        gains = {plan: gain(own, plan, code) for plan in plans}
        best = max(plans, key=lambda plan: gains[plan][0])
        times, noise = gains[best]
        is_better = times > 1 + noise
        tried = ", ".join(f"{keys_of(plan)[name]}: {gains[plan][0]:.3f}" for plan in plans)
        why = f"times as fast: {tried}; noise {noise:.1%}; {len(own)} cases"
        implied.append(Implied(name, value, float(keys_of(best)[name]) if is_better else value, why))
    return implied


# --- a GPU's thresholds -----------------------------------------------------------------------------------------------


def _teams(sweeps: list[Measured], current: Mapping[str, float]) -> Iterable[Implied]:
    own = _about(sweeps, "team")
    for name, pick in (("most_cluster_team", min), ("least_cluster_team", max)):
        sweep = pick((sweep for sweep in own if sweep["op"] == "zip"), key=lambda sweep: sweep["B"], default=None)
        best = sweep and quickest(sweep, _plans(sweep, threads="512"))
        if best:
            yield Implied(name, current[name], int(keys_of(best)["team"]), f"{best} is quickest of B = {sweep['B']}")


def _threads(sweeps: list[Measured], current: Mapping[str, float], multiprocessors: int) -> Iterable[Implied]:
    """Beyond one wave of the smallest teams of the largest blocks."""
    least = current["least_cluster_team"]
    many = [sweep for sweep in _about(sweeps, "team") if sweep["B"] * least > multiprocessors]
    quickest_of = [[quickest(sweep, _plans(sweep, threads=threads)) for threads in ("256", "512")] for sweep in many]
    pairs = [(sweep, *both) for sweep, both in zip(many, quickest_of, strict=True) if all(both)]
    if pairs:
        won = sum(is_quicker(sweep, half, whole) for sweep, half, whole in pairs)
        why = f"256 threads are quicker in {won} of {len(pairs)} cases beyond one wave"
        yield Implied("many_images_threads", current["many_images_threads"], 256 if 2 * won > len(pairs) else 512, why)


def _staging(sweeps: list[Measured], current: Mapping[str, float], multiprocessors: int) -> Iterable[Implied]:
    waves = {True: [0.0], False: [float("inf")]}
    for sweep, staged, read in _pairs(_about(sweeps, "staging"), "staged", "1", "0"):
        own = sweep["B"] * int(keys_of(staged)["team"]) / multiprocessors
        waves[_median(sweep, staged) < _median(sweep, read)].append(own)
    if len(waves[True]) + len(waves[False]) > 2:
        why = f"staged hidden is quicker up to {max(waves[True]):.2f} waves, slower from {min(waves[False]):.2f} on"
        yield Implied("staging_waves", current["staging_waves"], round(max(waves[True]), 2), why)


def _comparisons(sweep: Measured, plan: str) -> int:
    """Of a block that counts ranks, of images of up to 2048 tokens: teams divide chunks of eight."""
    chunks = -(-sweep["S"] // 8)
    return sweep["S"] * 8 * -(-chunks // int(keys_of(plan)["team"]))


def _selection(sweeps: list[Measured], current: Mapping[str, float]) -> Iterable[Implied]:
    quick: list[int] = []
    slow: list[int] = []
    for sweep, ranks, digits in _pairs(_about(sweeps, "selection"), "select", "ranks", "digits"):
        (quick if _median(sweep, ranks) < _median(sweep, digits) else slow).append(_comparisons(sweep, ranks))
    if quick or slow:
        # Above the first that is slow, a quick one is noise.
        below = [number for number in quick if number < min(slow, default=float("inf"))]
        why = f"ranks are quicker up to {max(quick, default=0)} comparisons, slower from {min(slow, default=0)} on"
        yield Implied("rank_comparisons", current["rank_comparisons"], max(below, default=0), why)


def _block_path(sweeps: list[Measured], current: Mapping[str, float], multiprocessors: int) -> Iterable[Implied]:
    won = []
    own = _about(sweeps, "grid")
    for sweep in own:
        grid, block = quickest(sweep, _plans(sweep, path="grid")), quickest(sweep, ["path=block"])
        if grid and block and _median(sweep, block) < _median(sweep, grid):
            won.append(sweep["B"] / multiprocessors)
    if own and won:
        why = f"a block an image is quicker than any grid from {min(won):.2f} images a multiprocessor on"
        yield Implied("block_path_images", current["block_path_images"], round(min(won), 2), why)


def _column_sums(sweeps: list[Measured], current: Mapping[str, float], multiprocessors: int) -> Iterable[Implied]:
    waves = []
    for sweep in _about(sweeps, "sums"):
        best = quickest(sweep, [plan for plan in sweep["seconds"] if plan != DEFAULT])
        if best and int(keys_of(best)["sum_chunks"]) > 1:
            waves.append(sweep["B"] * sweep["H"] * 8 / int(keys_of(best)["sum_chunks"]) / multiprocessors)
    if waves:
        why = f"the quickest blocks of several chunks leave {min(waves):.2f} waves or more"
        yield Implied("column_sum_waves", current["column_sum_waves"], round(min(waves), 2), why)


def cuda_thresholds(sweeps: list[Measured], current: Mapping[str, float], multiprocessors: int) -> list[Implied]:
    """All that the sweeps tell something about."""
    return [
        *_teams(sweeps, current),
        *_threads(sweeps, current, multiprocessors),
        *_staging(sweeps, current, multiprocessors),
        *_selection(sweeps, current),
        *_block_path(sweeps, current, multiprocessors),
        *_column_sums(sweeps, current, multiprocessors),
    ]
