"""Zips the features of encoded tiles, each tile to its own budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

import visionzip_ext
from visionzip_ext.integrations.transformers.towers.zip_tower import EncodedTiles
from visionzip_ext.tokens.budget import TileBudget


class Region(NamedTuple):
    """The patches of a tile that are not padding: rows [top, bottom), columns [left, right)."""

    top: int
    bottom: int
    left: int
    right: int


class Tile(NamedTuple):
    """What one tile is to become: so many tokens, of the patches in `region` (None: of all)."""

    budget: TileBudget
    region: Region | None = None


@dataclass(frozen=True)
class ZipDecision:
    """What became of each encoder token in one forward: for pictures, and for `visionzip_ext.merge` on other tensors.

    Attributes:
        indices: (T, dominant) int64, ascending: the encoder tokens kept, CLS (0) first where there is one.
        assignment: (T, S) int64: the output row that each encoder token went to: 0..dominant-1 kept,
            dominant..dominant+contextual-1 merged, -1 dropped (for contextual = 0) or left out as padding.
        grid: (rows, columns) of patches; S is their product, plus one where there is a CLS token.
        has_cls: encoder token 0 is CLS.
        dominant: rows kept.
        contextual: rows merged.
    """

    indices: Tensor
    assignment: Tensor
    grid: tuple[int, int]
    has_cls: bool
    dominant: int
    contextual: int

    def of_patches(self) -> tuple[Tensor, int]:
        """The same decision without CLS: (assignment (T, patches), dominant), as `merge` takes them.

        For tensors that have a row for each patch and none for CLS, such as a second encoder's windows. CLS's own
        output row is then missing: dominant - 1 + contextual rows are left.
        """
        if not self.has_cls:
            return self.assignment, self.dominant
        patches = self.assignment[:, 1:]
        return torch.where(patches > 0, patches - 1, patches), self.dominant - 1


@dataclass(frozen=True)
class ZippedTiles:
    """What became of some tiles.

    Attributes:
        rows: (N, C): the rows of all tiles, tile after tile: kept ones ascending, then merged ones.
        places: (N,) int64: the encoder token of the tile that each row stands for: the kept token, or the target.
        decisions: one for all tiles where their budgets are the same, otherwise one for each.
    """

    rows: Tensor
    places: Tensor
    decisions: list[ZipDecision]

    @property
    def decision(self) -> ZipDecision | list[ZipDecision]:
        """What `last_zip` returns."""
        return self.decisions[0] if len(self.decisions) == 1 else self.decisions


def zip_tiles(encoded: EncodedTiles, tiles: Sequence[Tile], merge: str) -> ZippedTiles:
    """Zip each tile of `encoded` as `tiles` asks; tiles that ask for the same go through the operator together."""
    groups: dict[Tile, list[int]] = {}
    for number, tile in enumerate(tiles):
        groups.setdefault(tile, []).append(number)
    if len(groups) == 1:
        rows, places, decision = _zip_alike(encoded, None, tiles[0], merge)
        return ZippedTiles(rows.flatten(0, 1), places.flatten(), [decision])
    of_tile: dict[int, tuple[Tensor, Tensor, ZipDecision]] = {}
    for tile, numbers in groups.items():
        rows, places, decision = _zip_alike(encoded, numbers, tile, merge)
        for i, number in enumerate(numbers):
            of_tile[number] = rows[i], places[i], _one_of(decision, i)
    ordered = [of_tile[number] for number in range(len(tiles))]
    return ZippedTiles(torch.cat([t[0] for t in ordered]), torch.cat([t[1] for t in ordered]), [t[2] for t in ordered])


def _zip_alike(
    encoded: EncodedTiles, numbers: list[int] | None, tile: Tile, merge: str
) -> tuple[Tensor, Tensor, ZipDecision]:
    """Tiles `numbers` (None: all), which ask for the same: rows (n, k + m, C), places (n, k + m), the decision."""
    features, (queries, keys, scale) = encoded.features, encoded.attention
    total = features.shape[1]
    if numbers is not None:
        features, queries, keys = (x[numbers] for x in (features, queries, keys))
    seen = None
    if tile.region is not None:
        seen = tokens_in(tile.region, encoded.grid, encoded.has_cls, features.device)
        features, queries, keys = features[:, seen], queries[:, :, seen], keys[:, :, seen]
    k, m = tile.budget
    if k + m == 0:
        nothing = torch.empty(len(features), 0, dtype=torch.int64, device=features.device)
        dropped = nothing.new_full((len(features), total), -1)
        decision = ZipDecision(nothing, dropped, encoded.grid, encoded.has_cls, 0, 0)
        return features[:, :0], nothing, decision
    result = visionzip_ext.zip_qk(features, queries, keys, k, m, scale=scale, has_cls=encoded.has_cls, merge=merge)
    indices, assignment = result.indices, result.assignment
    places = torch.cat([indices, target_tokens(indices, features.shape[1], m)], 1)
    if seen is not None:
        everywhere = assignment.new_full((len(features), total), -1)
        everywhere[:, seen] = assignment
        places, indices, assignment = seen[places], seen[indices], everywhere
    return result.tokens, places, ZipDecision(indices, assignment, encoded.grid, encoded.has_cls, k, m)


def _one_of(decision: ZipDecision, i: int) -> ZipDecision:
    rest = decision.grid, decision.has_cls, decision.dominant, decision.contextual
    return ZipDecision(decision.indices[i : i + 1], decision.assignment[i : i + 1], *rest)


def tokens_in(region: Region, grid: tuple[int, int], has_cls: bool, device: torch.device) -> Tensor:
    """The encoder tokens of a region, ascending; CLS, which stands for the whole tile, is among them."""
    patches = torch.arange(grid[0] * grid[1], device=device).view(grid) + int(has_cls)
    inside = patches[region.top : region.bottom, region.left : region.right].flatten()
    return torch.cat([inside.new_zeros(1), inside]) if has_cls else inside


def target_tokens(indices: Tensor, tokens: int, m: int) -> Tensor:
    """The tokens (T, m) that were merged into: of those not kept every step-th (Algorithm 2 of the paper)."""
    if m == 0:
        return indices[:, :0]
    kept = torch.zeros(len(indices), tokens, dtype=torch.uint8, device=indices.device).scatter_(1, indices, 1)
    remaining = kept.argsort(dim=1, stable=True)[:, : tokens - indices.shape[1]]
    return remaining[:, :: max(1, remaining.shape[1] // m)][:, :m]
