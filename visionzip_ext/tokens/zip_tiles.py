"""Zips the features of encoded tiles, each tile to its own budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visionzip_ext.ops import zip_qk
from visionzip_ext.tokens.budget import Rule
from visionzip_ext.tokens.decision import ZipDecision
from visionzip_ext.tokens.tiles import Tile, TileFeatures


@dataclass(frozen=True)
class ZippedTiles:
    """What became of some tiles.

    Attributes:
        rows: (N, C): the rows of all tiles, tile after tile: kept ones ascending, then merged ones.
        places: (N,) int64: the encoder token of the tile that each row represents: the kept token, or the target.
        decisions: one for all tiles where their budgets are the same, otherwise one for each.
    """

    rows: Tensor
    places: Tensor
    decisions: list[ZipDecision]

    @property
    def decision(self) -> ZipDecision | list[ZipDecision]:
        """What `last_zip` returns."""
        return self.decisions[0] if len(self.decisions) == 1 else self.decisions


def zip_tiles(encoded: TileFeatures, tiles: Sequence[Tile], rule: Rule) -> ZippedTiles:
    """Zip each tile as `tiles` asks; tiles that ask for the same go through the operator together.

    Args:
        encoded: T tiles.
        tiles: T entries.
        rule: by which tokens are kept and merged.
    """
    alike: dict[Tile, list[int]] = {}
    for number, tile in enumerate(tiles):
        alike.setdefault(tile, []).append(number)
    if len(alike) == 1:
        rows, places, decision = _zip_alike(encoded, None, tiles[0], rule)
        return ZippedTiles(rows.flatten(0, 1), places.flatten(), [decision])
    of_tile: dict[int, tuple[Tensor, Tensor, ZipDecision]] = {}
    for tile, numbers in alike.items():
        rows, places, decision = _zip_alike(encoded, numbers, tile, rule)
        for i, number in enumerate(numbers):
            of_tile[number] = rows[i], places[i], decision.of_tile(i)
    ordered = [of_tile[number] for number in range(len(tiles))]
    return ZippedTiles(torch.cat([t[0] for t in ordered]), torch.cat([t[1] for t in ordered]), [t[2] for t in ordered])


def _zip_alike(
    encoded: TileFeatures, numbers: list[int] | None, tile: Tile, rule: Rule
) -> tuple[Tensor, Tensor, ZipDecision]:
    """Tiles `numbers` (None: all), which ask for the same: rows (n, k + m, C), places (n, k + m), the decision."""
    features, queries, keys = encoded.features, encoded.queries, encoded.keys
    total = features.shape[1]
    if numbers is not None:
        features, queries, keys = (x[numbers] for x in (features, queries, keys))
    seen = None
    if tile.region is not None:
        seen = tile.region.tokens(encoded.grid, encoded.has_cls, features.device)
        features, queries, keys = features[:, seen], queries[:, :, seen], keys[:, :, seen]
    k, m = tile.budget
    if k + m == 0:
        nothing = torch.empty(len(features), 0, dtype=torch.int64, device=features.device)
        dropped = nothing.new_full((len(features), total), -1)
        decision = ZipDecision(nothing, dropped, encoded.grid, encoded.has_cls, 0, 0, rule.keep_cls)
        return features[:, :0], nothing, decision
    result = zip_qk(
        features,
        queries,
        keys,
        k,
        m,
        scale=encoded.scale,
        has_cls=encoded.has_cls,
        merge=rule.merge,
        policy=rule.policy,
        keep_cls=rule.keep_cls,
    )
    indices, assignment = result.indices, result.assignment
    places = torch.cat([indices, target_tokens(indices, features.shape[1], m, cls_left_out=not rule.keep_cls)], 1)
    if seen is not None:
        everywhere = assignment.new_full((len(features), total), -1)
        everywhere[:, seen] = assignment
        places, indices, assignment = seen[places], seen[indices], everywhere
    return result.tokens, places, ZipDecision(indices, assignment, encoded.grid, encoded.has_cls, k, m, rule.keep_cls)


def target_tokens(indices: Tensor, tokens: int, m: int, *, cls_left_out: bool = False) -> Tensor:
    """The tokens that were merged into: of those not kept every step-th (Algorithm 2 of the paper).

    Args:
        indices: (T, k): the tokens kept.
        tokens: of a tile, CLS included.
        m: how many merged rows there are.
        cls_left_out: token 0 is a CLS that takes no row, and remains for nobody to merge.

    Returns:
        (T, m) int64, ascending.
    """
    if m == 0:
        return indices[:, :0]
    kept = torch.zeros(len(indices), tokens, dtype=torch.uint8, device=indices.device).scatter_(1, indices, 1)
    if cls_left_out:
        kept[:, 0] = 1
    remaining = kept.argsort(dim=1, stable=True)[:, : tokens - indices.shape[1] - cls_left_out]
    return remaining[:, :: max(1, remaining.shape[1] // m)][:, :m]
