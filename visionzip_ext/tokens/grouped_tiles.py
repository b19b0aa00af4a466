"""Zips encoded tiles of which a model makes one token out of a square of patches, by pooling or pixel shuffle.

A token's score is the sum of its patches', its key the mean of theirs: `group` of `visionzip_ext.zip_packed`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from visionzip_ext.packed import zip_packed
from visionzip_ext.tokens.budget import Rule, TileBudget
from visionzip_ext.tokens.decision import ZipDecision


class ZippedGroupedTiles(NamedTuple):
    """What became of the tokens of some tiles.

    Attributes:
        rows: (T, k + m, C): of each tile the kept tokens in raster order, then the merged ones.
        decision: on the grid of tokens, without CLS.
    """

    rows: Tensor
    decision: ZipDecision


def zip_grouped_tiles(
    features: Tensor, queries: Tensor, keys: Tensor, scale: float, budget: TileBudget, rule: Rule
) -> ZippedGroupedTiles:
    """Zip each of T square tiles to the same budget. Nothing of the size of all pairs of patches is made.

    Args:
        features: (T, N, C): of N = n * n tokens in raster order, each made of side * side patches.
        queries: (T, H, S, D): of the patches in raster order; S = N * side * side.
        keys: (T, H, S, D): likewise.
        scale: the attention's factor on Q K^T.
        budget: of each tile.
        rule: by which tokens are kept and merged.

    Raises:
        ValueError: the patches do not make a square of so many square groups.
    """
    tiles, tokens = features.shape[:2]
    width, side = _square(tokens, queries.shape[2])
    result = zip_packed(
        features.flatten(0, 1),
        by_token(keys, width, side),
        torch.arange(tiles + 1, dtype=torch.int32, device=features.device) * tokens,
        *budget,
        queries=by_token(queries, width, side),
        scale=scale,
        max_seqlen=tokens,
        group=side * side,
        merge=rule.merge,
        policy=rule.policy,
    )
    tile = torch.arange(tiles, device=features.device).unsqueeze(1)
    assignment = result.assignment.view(tiles, tokens)
    decision = ZipDecision(
        result.indices.view(tiles, budget.dominant) - tile * tokens,
        torch.where(assignment < 0, -1, assignment - tile * budget.tokens),
        grid=(width, width),
        has_cls=False,
        dominant=budget.dominant,
        contextual=budget.contextual,
    )
    return ZippedGroupedTiles(result.tokens.unflatten(0, (tiles, budget.tokens)), decision)


def by_token(x: Tensor, width: int, side: int) -> Tensor:
    """(T, H, S, D) of patches in raster order -> (T * S, H, D), the patches of a token one after another.

    Args:
        x: queries or keys.
        width: tokens along a side of a tile.
        side: patches along a side of a token.
    """
    tiles, heads, _, channels = x.shape
    patches = x.reshape(tiles, heads, width, side, width, side, channels)
    return patches.permute(0, 2, 4, 3, 5, 1, 6).reshape(-1, heads, channels)


def _square(tokens: int, patches: int) -> tuple[int, int]:
    """Tokens along a side of a tile, and patches along a side of a token."""
    width = math.isqrt(tokens)
    side = math.isqrt(patches // tokens)
    if width**2 != tokens or tokens * side**2 != patches:
        raise ValueError(
            f"the vision tower made {patches} patches of a tile and the model {tokens} tokens of them; expected a "
            "square of tokens, each of a square of patches"
        )
    return width, side
