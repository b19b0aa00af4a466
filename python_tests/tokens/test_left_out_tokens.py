"""Tokens that are padding: decisions say -1 for each, and still say what they are decisions of."""

from __future__ import annotations

import pytest
import torch

from visionzip_ext.tokens.budget import Rule, TileBudget
from visionzip_ext.tokens.tiles import Region, Tile, TileFeatures
from visionzip_ext.tokens.zip_tiles import zip_tiles

GRID = (4, 5)
CHANNELS = 7  # other than there are tokens


@pytest.mark.parametrize("has_cls", [False, True])
@pytest.mark.parametrize(
    ("region", "budget"),
    [(Region(0, 0, 0, 0), TileBudget(0, 0)), (Region(1, 3, 0, 5), TileBudget(4, 2))],
    ids=["all", "some"],
)
def test_a_decision_leaves_padding_out(rng, region, budget, has_cls):
    tokens = GRID[0] * GRID[1] + has_cls
    queries, keys = torch.randn(2, 2, 3, tokens, 8, generator=rng)
    features = TileFeatures(torch.randn(2, tokens, CHANNELS, generator=rng), queries, keys, 0.35, GRID, has_cls)
    zipped = zip_tiles(features, [Tile(budget, region)] * 2, Rule("residual"))
    decision = zipped.decision
    seen = region.tokens(GRID, has_cls, torch.device("cpu")) if region.patches else torch.empty(0, dtype=torch.int64)
    padding = torch.ones(tokens, dtype=torch.bool).index_fill(0, seen, False)
    assert zipped.rows.shape == (2 * budget.tokens, CHANNELS)
    assert decision.assignment.shape == (2, tokens)
    assert (decision.assignment[:, padding] == -1).all()
    assert (decision.assignment[:, ~padding] >= 0).all()
    assert decision.indices.dtype == decision.assignment.dtype == torch.int64
    assert (decision.grid, decision.has_cls, decision.dominant, decision.contextual) == (GRID, has_cls, *budget)
