"""Intervals: as wide as photographs differ, and paired."""

from __future__ import annotations

import torch

from evaluation import statistics


def _answers(rng, photographs: int, scenes: int, of_photograph: float, accuracy: float = 0.7):
    """Right answers of scenes, whose photographs are easier and harder by so much."""
    numbers = torch.arange(photographs).repeat_interleave(scenes)
    easy = torch.randn(photographs, generator=rng)[numbers] * of_photograph + accuracy
    return torch.rand(len(numbers), 10, generator=rng) < easy[:, None], numbers


def test_the_value_is_the_share(rng):
    right, photographs = _answers(rng, 12, 10, 0.1)
    estimate = statistics.accuracy(right, photographs)
    assert abs(estimate.value - right.float().mean()) < 1e-6
    assert estimate.low < estimate.value < estimate.high
    assert statistics.kept(right, right, photographs) == statistics.Estimate(1, 1, 1)
    assert statistics.difference(right, right, photographs) == statistics.Estimate(0, 0, 0)


def test_photographs_that_differ_widen_the_interval(rng):
    alike, different = (statistics.accuracy(*_answers(rng, 12, 30, spread)) for spread in (0, 0.25))
    assert different.high - different.low > 2 * (alike.high - alike.low)


def test_pairing_narrows_it(rng):
    """Two that fail in the same scenes differ by less than their own intervals say."""
    right, photographs = _answers(rng, 12, 20, 0.2)
    other = right & (torch.rand(right.shape, generator=rng) < 0.97)
    paired = statistics.difference(other, right, photographs)
    alone = statistics.accuracy(right, photographs)
    assert paired.high < 0
    assert paired.high - paired.low < (alone.high - alone.low) / 2
