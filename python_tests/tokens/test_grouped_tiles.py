"""Tiles of which a square of patches makes one token."""

from __future__ import annotations

import pytest
import torch

import visionzip_ext
from visionzip_ext.tokens.budget import Rule, TileBudget
from visionzip_ext.tokens.grouped_tiles import zip_grouped_tiles

TILES, HEADS, CHANNELS, FEATURES = 3, 2, 8, 12


def encoded(width: int, side: int) -> tuple[torch.Tensor, ...]:
    """The tokens' features; the patches' queries and keys in raster order."""
    generator = torch.Generator().manual_seed(0)
    patches = (width * side) ** 2
    tokens = torch.randn(TILES, width**2, FEATURES, generator=generator)
    queries, keys = (torch.randn(TILES, HEADS, patches, CHANNELS, generator=generator) for _ in range(2))
    return tokens, queries * 2, keys


@pytest.mark.parametrize("policy", ["attention", "distinct"])
@pytest.mark.parametrize("merge", ["residual", "mean"])
@pytest.mark.parametrize("side", [1, 2, 3])
def test_a_token_has_the_attention_and_the_mean_key_of_its_patches(side, merge, policy):
    width, budget, scale = 5, TileBudget(6, 3), 0.3
    tokens, queries, keys = encoded(width, side)
    received = (queries @ keys.transpose(2, 3) * scale).softmax(-1).mean((1, 2))  # (T, S)
    scores, mean_keys = torch.zeros(TILES, len(tokens[0])), torch.zeros(TILES, len(tokens[0]), CHANNELS)
    for patch in range(queries.shape[2]):
        row, column = divmod(patch, width * side)
        token = row // side * width + column // side
        scores[:, token] += received[:, patch]
        mean_keys[:, token] += keys[:, :, patch].mean(1) / side**2
    expected = visionzip_ext.zip(tokens, mean_keys, scores, *budget, has_cls=False, merge=merge, policy=policy)
    zipped = zip_grouped_tiles(tokens, queries, keys, scale, budget, Rule(merge, policy))
    assert torch.equal(zipped.decision.indices, expected.indices)
    assert torch.equal(zipped.decision.assignment, expected.assignment)
    torch.testing.assert_close(zipped.rows, expected.tokens)
    assert zipped.decision.grid == (width, width)


def test_dropped_tokens_go_nowhere():
    tokens, queries, keys = encoded(4, 2)
    decision = zip_grouped_tiles(tokens, queries, keys, 0.3, TileBudget(5, 0), Rule("residual")).decision
    assert (decision.assignment >= 0).sum(1).tolist() == [5] * TILES
    for tile in range(TILES):
        assert (decision.assignment[tile] >= 0).nonzero().flatten().tolist() == decision.indices[tile].tolist()


def test_a_tile_is_the_same_beside_any_other():
    tokens, queries, keys = encoded(4, 2)
    together = zip_grouped_tiles(tokens, queries, keys, 0.3, TileBudget(5, 2), Rule("residual"))
    alone = zip_grouped_tiles(tokens[1:2], queries[1:2], keys[1:2], 0.3, TileBudget(5, 2), Rule("residual"))
    assert torch.equal(together.rows[1:2], alone.rows)
    assert torch.equal(together.decision.assignment[1:2], alone.decision.assignment)


@pytest.mark.parametrize(("tokens", "patches"), [(16, 80), (15, 60), (16, 32)])
def test_patches_that_make_no_squares(tokens, patches):
    queries = torch.zeros(1, 1, patches, 4)
    with pytest.raises(ValueError, match=f"made {patches} patches of a tile and the model {tokens} tokens of them"):
        zip_grouped_tiles(torch.zeros(1, tokens, 4), queries, queries, 1.0, TileBudget(5, 2), Rule("residual"))
