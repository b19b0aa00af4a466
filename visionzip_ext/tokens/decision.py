"""What became of the tokens of encoded tiles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ZipDecision:
    """What became of each encoder token in one forward: for pictures, and for `visionzip_ext.merge` on other tensors.

    Attributes:
        indices: (T, dominant) int64, ascending: the encoder tokens kept, CLS (0) first where there is one, unless it
            takes no row.
        assignment: (T, S) int64: the output row that each encoder token went to: 0..dominant-1 kept,
            dominant..dominant+contextual-1 merged, -1 dropped (for contextual = 0) or left out: padding, and CLS where
            it takes no row.
        grid: (rows, columns) of patches; S is their product, plus one where there is a CLS token.
        has_cls: encoder token 0 is CLS.
        dominant: rows kept.
        contextual: rows merged.
        keep_cls: CLS, where there is one, takes a row.
    """

    indices: Tensor
    assignment: Tensor
    grid: tuple[int, int]
    has_cls: bool
    dominant: int
    contextual: int
    keep_cls: bool = True

    def of_patches(self) -> tuple[Tensor, int]:
        """The same decision without CLS: (assignment (T, patches), dominant), as `merge` takes them.

        For tensors that have a row for each patch and none for CLS, such as a second encoder's windows. CLS's own
        output row, if it takes one, is then missing: dominant - 1 + contextual rows are left.
        """
        if not (self.has_cls and self.keep_cls):
            return self.assignment[:, int(self.has_cls) :], self.dominant
        patches = self.assignment[:, 1:]
        return torch.where(patches > 0, patches - 1, patches), self.dominant - 1

    def of_tile(self, i: int) -> ZipDecision:
        """The decision of the i-th tile alone, T = 1."""
        rest = self.grid, self.has_cls, self.dominant, self.contextual, self.keep_cls
        return ZipDecision(self.indices[i : i + 1], self.assignment[i : i + 1], *rest)
