"""Budgets by share, and where the rows of packed images stand."""

from __future__ import annotations

import pytest
import torch

from visionzip_ext import zip_packed
from visionzip_ext.tokens.budget import Budget, Share, TileBudget
from visionzip_ext.tokens.packed_images import PackedImages, row_tokens


@pytest.mark.parametrize(
    ("share", "tokens", "expected"),
    [
        (Share(0.1), 1024, (86, 16)),
        (Share(0.0625), 1024, (54, 10)),
        (Share(0.1), 4, (1, 0)),
        (Share(0.1, min_tokens=64), 100, (54, 10)),
        (Share(0.1, min_tokens=64), 16, (13, 3)),
        (Share(0.5, max_tokens=64), 1024, (54, 10)),
        (Share(1.0), 64, (54, 10)),
        (Share(0.1, policy="distinct"), 1024, (86, 16)),
        (Share(0.1, min_tokens=64, policy="distinct"), 100, (54, 10)),
    ],
)
def test_a_share_of_an_images_tokens(share, tokens, expected):
    assert share.of_tiles(2, tokens) == [TileBudget(*expected)] * 2


def test_a_share_where_all_tiles_have_the_same_number_of_tokens():
    assert Share(1 / 9, merge="mean").as_budget(577) == Budget(54, 10, "mean")
    assert Share(0.1, min_tokens=64, max_tokens=64).as_budget(49) == Budget(41, 8)


def test_frames_of_images_and_videos():
    frames = PackedImages(Share(0.5), merge_size=2).frames(torch.tensor([[1, 4, 8], [3, 4, 4]]))
    assert [(frame.grid, frame.budget.tokens) for frame in frames] == [((2, 4), 4), *[((2, 2), 2)] * 3]
    whole = PackedImages(Budget(5, 2, per="image"), merge_size=2).frames([[2, 4, 4]])
    assert [tuple(frame.budget) for frame in whole] == [(3, 1), (2, 1)]


def test_a_budget_above_the_cells_of_an_image():
    with pytest.raises(ValueError, match=r"ask for 7 tokens of an image, but one of 2 x 3 tokens has 6; lower them"):
        PackedImages(Budget(5, 2), merge_size=2).frames([[1, 4, 6]])


def test_every_row_stands_where_its_token_or_its_target_is():
    """A target is merged with itself, so that its own row is the one that it is assigned to."""
    lengths, k, m = [12, 5, 9], [4, 5, 1], [3, 0, 2]
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    generator = torch.Generator().manual_seed(0)
    hidden, keys = (torch.randn(26, *shape, generator=generator) for shape in ((8,), (2, 4)))
    result = zip_packed(hidden, keys, starts, k, m, scores=torch.rand(26, generator=generator))
    tokens = row_tokens(result.indices, lengths, k, m)
    assert torch.equal(result.assignment[tokens], torch.arange(sum(k) + sum(m)))
    kept = torch.cat([row[:count] for row, count in zip(tokens.split([7, 5, 3]), k, strict=True)])
    assert torch.equal(kept, result.indices)
    for frame, (length, own_k, own_m) in enumerate(zip(lengths, k, m, strict=True)):
        first = int(starts[frame])
        rest = [token for token in range(first, first + length) if token not in result.indices.tolist()]
        targets = rest[:: max(1, len(rest) // max(1, own_m))][:own_m]
        row = sum(k[:frame]) + sum(m[:frame]) + own_k
        assert tokens[row : row + own_m].tolist() == targets
