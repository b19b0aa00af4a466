"""Tiles zipped each to its own budget: rows, places and decisions against plain Python and one tile at a time."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from visionzip_ext import merge
from visionzip_ext.tokens.budget import Rule, TileBudget
from visionzip_ext.tokens.tiles import Region, Tile, TileFeatures
from visionzip_ext.tokens.zip_tiles import target_tokens, zip_tiles

GRID = (4, 5)
PATCHES = GRID[0] * GRID[1]
H, D = 2, 8
CLS = ("none", "kept", "left out")


def encoded(tiles: int, has_cls: bool, generator: torch.Generator) -> TileFeatures:
    """One-hot features: a row of the result says which token it was made of, and with which weight."""
    tokens = PATCHES + has_cls
    queries, keys = torch.randn(2, tiles, H, tokens, D, generator=generator)
    return TileFeatures(torch.eye(tokens).repeat(tiles, 1, 1), queries, keys, D**-0.5, GRID, has_cls)


def targets(kept: list[int], tokens: int, m: int, first: int = 0) -> list[int]:
    """Algorithm 2 of the paper."""
    remaining = [token for token in range(first, tokens) if token not in kept]
    step = max(1, len(remaining) // m) if m else 1
    return remaining[::step][:m]


@given(
    budget=st.tuples(st.integers(1, 12), st.integers(0, 8)),
    cls=st.sampled_from(CLS),
    policy=st.sampled_from(["attention", "distinct"]),
    seed=st.integers(0, 2**31),
)
def test_places_are_the_tokens_kept_and_the_operators_own_targets(budget, cls, policy, seed):
    (k, m), has_cls = budget, cls != "none"
    rule = Rule("residual", policy, keep_cls=cls != "left out")
    generator = torch.Generator().manual_seed(seed)
    zipped = zip_tiles(encoded(2, has_cls, generator), [Tile(TileBudget(k, m))] * 2, rule)
    decision, tokens = zipped.decision, PATCHES + has_cls
    places = zipped.places.view(2, k + m)
    for tile in range(2):
        kept = decision.indices[tile].tolist()
        assert places[tile].tolist() == kept + targets(kept, tokens, m, first=int(cls == "left out"))
    # A token that is merged alone into a target has the target's weight; of several each has less.
    weights = zipped.rows.view(2, k + m, tokens)
    assert torch.equal(weights.gather(2, places.unsqueeze(-1)).squeeze(-1), weights.amax(-1))
    assert torch.equal(decision.assignment.gather(1, places), torch.arange(k + m).expand(2, -1))


@given(cls=st.sampled_from(CLS), seed=st.integers(0, 2**31))
def test_tiles_of_different_budgets_are_zipped_as_each_alone(cls, seed):
    has_cls, rule = cls != "none", Rule("mean", keep_cls=cls != "left out")
    tiles = [
        Tile(TileBudget(5, 3)),
        Tile(TileBudget(2, 0)),
        Tile(TileBudget(4, 2), Region(1, 3, 0, 5)),
        Tile(TileBudget(5, 3)),
        Tile(TileBudget(0, 0), Region(0, 0, 0, 0)),
    ]
    together = encoded(len(tiles), has_cls, torch.Generator().manual_seed(seed))
    zipped = zip_tiles(together, tiles, rule)
    assert len(zipped.decisions) == len(tiles)
    rows, places = (x.split([tile.budget.tokens for tile in tiles]) for x in (zipped.rows, zipped.places))
    for i, tile in enumerate(tiles):
        parts = (x[i : i + 1] for x in (together.features, together.queries, together.keys))
        alone = zip_tiles(TileFeatures(*parts, together.scale, GRID, has_cls), [tile], rule)
        assert torch.equal(rows[i], alone.rows)
        assert torch.equal(places[i], alone.places)
        assert torch.equal(zipped.decisions[i].indices, alone.decision.indices)
        assert torch.equal(zipped.decisions[i].assignment, alone.decision.assignment)
        assert zipped.decisions[i].keep_cls == alone.decision.keep_cls == rule.keep_cls


@pytest.mark.parametrize("has_cls", [False, True])
def test_a_region_is_all_that_is_seen(rng, has_cls):
    region = Region(1, 4, 2, 4)
    tokens = region.tokens(GRID, has_cls, torch.device("cpu"))
    inside = [int(has_cls) + 5 * row + column for row in range(1, 4) for column in range(2, 4)]
    assert tokens.tolist() == [0] * has_cls + inside
    zipped = zip_tiles(encoded(1, has_cls, rng), [Tile(TileBudget(3, 2), region)], Rule("residual"))
    assignment = zipped.decision.assignment[0]
    assert torch.equal(assignment.ge(0).nonzero().flatten(), tokens)
    assert set(zipped.places.tolist()) <= set(tokens.tolist())


@pytest.mark.parametrize("cls", CLS)
def test_a_decision_without_cls_merges_patches(rng, cls):
    has_cls = cls != "none"
    features = encoded(2, has_cls, rng)
    decision = zip_tiles(features, [Tile(TileBudget(4, 3))] * 2, Rule("mean", keep_cls=cls != "left out")).decision
    assignment, dominant = decision.of_patches()
    patches = torch.randn(2, PATCHES, 3, generator=rng)
    all_tokens = torch.cat([torch.zeros(2, int(has_cls), 3), patches], 1)
    merged = merge(all_tokens, decision.assignment, 4, 3, merge="mean")
    torch.testing.assert_close(merge(patches, assignment, dominant, 3, merge="mean"), merged[:, int(cls == "kept") :])


def test_no_contextual_tokens_have_no_targets():
    assert target_tokens(torch.tensor([[0, 2]]), 5, 0).shape == (1, 0)


def test_importing_it_imports_no_transformers():
    """So that every engine's integration can share it."""
    modules = ("allocation", "budget", "decision", "tiles", "zip_tiles", "tiled_images")
    imports = "; ".join(f"import visionzip_ext.tokens.{module}" for module in modules)
    found = "[name for name in sys.modules if name.split('.')[0] == 'transformers' or 'integrations' in name]"
    code = f"import sys; {imports}; print({found})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
