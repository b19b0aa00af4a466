"""Selections to compare with, against their definitions in plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from visionzip_ext.analysis import greedy_dpp, scope, suppressed_by_place

B, S, D, K = 3, 25, 6, 5
ALL = (greedy_dpp, scope, suppressed_by_place)


@pytest.fixture
def inputs(rng) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(B, S, generator=rng).double(), torch.randn(B, S, D, generator=rng).double()


def cosines_of(keys: torch.Tensor) -> torch.Tensor:
    unit = functional.normalize(keys, dim=-1)
    return unit @ unit.mT


def by_hand(worth, k: int) -> list[int]:
    """k times the best of what is left; worth(token, kept) by definition."""
    kept: list[int] = []
    for _ in range(k):
        left = [token for token in range(S) if token not in kept]
        kept.append(max(left, key=lambda token: worth(token, kept)))
    return sorted(kept)


@pytest.mark.parametrize("k", [1, K, S])
def test_dpp_adds_most_to_the_determinant(inputs, k):
    scores, keys = inputs
    for image, (own, got) in enumerate(zip(scores, greedy_dpp(scores, keys, k), strict=True)):
        quality = own.sqrt()
        kernel = quality[:, None] * (cosines_of(keys[image]) + 1e-4 * torch.eye(S)) * quality

        def worth(token, kept, kernel=kernel):
            among = [*kept, token]
            return float(torch.logdet(kernel[among][:, among]))

        assert got.tolist() == by_hand(worth, k)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_scope_adds_most_to_what_is_covered(inputs, alpha):
    scores, keys = inputs
    for image, (own, got) in enumerate(zip(scores, scope(scores, keys, K, alpha=alpha), strict=True)):
        cosines = cosines_of(keys[image]).clamp(min=0)

        def worth(token, kept, own=own, cosines=cosines):
            covered = cosines[kept].amax(0) if kept else torch.zeros(S)
            return float((cosines[token] - covered).clamp(min=0).sum() * own[token] ** alpha)

        assert got.tolist() == by_hand(worth, K)


def test_neighbours_are_suppressed_by_place_alone(inputs):
    scores, keys = inputs
    for own, got in zip(scores, suppressed_by_place(scores, keys, K), strict=True):

        def worth(token, kept, own=own):
            left = float(own[token])
            for other in kept:
                (y, x), (row, column) = divmod(token, 5), divmod(other, 5)
                left *= 1 - 0.5 * math.exp(-((y - row) ** 2 + (x - column) ** 2) / 4.5)
            return left

        assert got.tolist() == by_hand(worth, K)
    assert torch.equal(suppressed_by_place(scores, keys, K), suppressed_by_place(scores, keys.flip(1), K))


@pytest.mark.parametrize("choose", ALL)
def test_ascending_without_repeats_and_the_same_alone(inputs, choose):
    scores, keys = inputs
    kept = choose(scores, keys, S)
    assert kept.dtype == torch.int64
    assert torch.equal(kept, torch.arange(S).expand(B, -1))
    some = choose(scores, keys, K)
    assert torch.equal(some[1:2], choose(scores[1:2], keys[1:2], K))
    assert (some.diff(dim=1) > 0).all()


@pytest.mark.parametrize("choose", [greedy_dpp, scope])
def test_a_twin_is_kept_last(choose):
    """Two tokens that show the same have the highest scores; one of them is enough."""
    keys = torch.eye(4)[None, [0, 0, 1, 2]]
    scores = torch.tensor([[0.9, 0.8, 0.5, 0.4]])
    assert choose(scores, keys, 3).tolist() == [[0, 2, 3]]


@pytest.mark.parametrize("choose", ALL)
def test_keys_of_several_heads_count_by_their_mean(inputs, choose, rng):
    scores, _ = inputs
    keys = torch.randn(B, 2, S, D, generator=rng)
    assert torch.equal(choose(scores, keys, K), choose(scores, keys.mean(1), K))
    assert choose(scores.half(), keys.half(), K).shape == (B, K)


@pytest.mark.parametrize("choose", ALL)
def test_bad_input(inputs, choose):
    scores, keys = inputs
    for k in (0, S + 1):
        with pytest.raises(ValueError, match=rf"k must be at least 1 and at most {S}, the tokens of an image, got {k}"):
            choose(scores, keys, k)
    for bad in ((scores[0], keys), (scores, keys[:, 1:]), (scores, keys[0, 0])):
        with pytest.raises(ValueError, match=r"expected scores \(B, S\) and keys \(B, S, D\) or \(B, H, S, D\), got "):
            choose(*bad, K)


def test_patches_that_make_no_square(inputs):
    scores, keys = inputs
    with pytest.raises(ValueError, match="scores must be of a square of patches, got 24 of an image"):
        suppressed_by_place(scores[:, 1:], keys[:, 1:], K)
