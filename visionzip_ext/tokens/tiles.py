"""Tiles, what an encoder sees at a time: what one is to become, and what encoded ones are zipped by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from visionzip_ext.tokens.budget import TileBudget


class Region(NamedTuple):
    """A rectangle of patches: rows [top, bottom), columns [left, right)."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def patches(self) -> int:
        """How many there are in it."""
        return (self.bottom - self.top) * (self.right - self.left)

    def tokens(self, grid: tuple[int, int], has_cls: bool, device: torch.device) -> Tensor:
        """The encoder tokens of the region, ascending; CLS, which belongs to the whole tile, is among them.

        Args:
            grid: (rows, columns) of the tile's patches.
            has_cls: token 0 is CLS.
            device: of the result.
        """
        patches = torch.arange(grid[0] * grid[1], device=device).view(grid) + int(has_cls)
        inside = patches[self.top : self.bottom, self.left : self.right].flatten()
        return torch.cat([inside.new_zeros(1), inside]) if has_cls else inside


class Tile(NamedTuple):
    """What one tile is to become: so many tokens, of the patches in `region` (None: of all)."""

    budget: TileBudget
    region: Region | None = None


@dataclass(frozen=True)
class TileFeatures:
    """An encoder's features of T tiles, not yet zipped, and what they are scored by.

    Attributes:
        features: (T, S, C).
        queries: (T, H, S, D): of the same tokens, in the layer whose attention decides.
        keys: (T, H, S, D).
        scale: the attention's factor on Q K^T.
        grid: (rows, columns) of patches; S is their product, plus one where there is a CLS token.
        has_cls: token 0 is CLS.
    """

    features: Tensor
    queries: Tensor
    keys: Tensor
    scale: float
    grid: tuple[int, int]
    has_cls: bool
