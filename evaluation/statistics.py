"""How sure a figure is: scenes of one photograph resemble one another, so photographs are drawn, not scenes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

_RESAMPLES = 4999


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % confidence interval."""

    value: float
    low: float
    high: float


def accuracy(right: Tensor, photographs: Tensor, counted: Tensor | None = None) -> Estimate:
    """Of answers (scenes, questions) of bool, given the photograph behind each scene (scenes,).

    Args:
        right: whether each answer is right.
        photographs: their numbers.
        counted: (scenes, questions) of bool: which questions count; all of them by default.
    """
    counted = torch.ones_like(right) if counted is None else counted
    return kept(right & counted, counted, photographs)


def kept(right: Tensor, with_all: Tensor, photographs: Tensor) -> Estimate:
    """The share of the accuracy with all tokens that is kept: both answered the same questions, so they are paired."""
    sums, _ = _by_photograph(right, photographs)
    all_sums, _ = _by_photograph(with_all, photographs)
    return _bootstrap((sums, all_sums), lambda sums, all_sums: sums.sum(-1) / all_sums.sum(-1))


def difference(right: Tensor, other: Tensor, photographs: Tensor) -> Estimate:
    """Accuracy less another provider's, paired."""
    sums, counts = _by_photograph(right, photographs)
    other_sums, _ = _by_photograph(other, photographs)
    return _bootstrap((sums - other_sums, counts), lambda gained, counts: gained.sum(-1) / counts.sum(-1))


def _by_photograph(right: Tensor, photographs: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Right answers and questions of each photograph."""
    numbers = photographs.numpy()
    present = np.unique(numbers)
    answers = right.numpy()
    return (
        np.array([answers[numbers == number].sum() for number in present], float),
        np.array([answers[numbers == number].size for number in present], float),
    )


def _bootstrap(by_photograph: tuple[np.ndarray, np.ndarray], statistic) -> Estimate:
    def over_last_axis(first, second, axis=-1):
        return statistic(np.moveaxis(first, axis, -1), np.moveaxis(second, axis, -1))

    result = stats.bootstrap(
        by_photograph,
        over_last_axis,
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    interval = result.confidence_interval
    return Estimate(float(statistic(*by_photograph)), float(interval.low), float(interval.high))
