"""Where the visual tokens that are left would stand in a prompt that had all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FullPlaces:
    """The visual tokens of one modality in a batch, by runs: what stands together in a prompt, as an image or a tile.

    Attributes:
        places: (N,) int64: of each row of features, its number among all tokens that its run has without compression; a
            merged row's is its target's.
        rows: of each run, the rows that are left, at least 1; N together.
        full: of each run, the tokens that it has without compression.
    """

    places: Tensor
    rows: list[int]
    full: list[int]

    def shifts(self, placeholders: Tensor) -> tuple[Tensor, Tensor]:
        """How far positions are from those that count the tokens of the short prompt.

        Args:
            placeholders: (B, L) bool: where the rows go, in order; or (n * B, L), each prompt n times, as beam search
                makes it of features that were made before.

        Returns:
            ((B, L) int64: what to add to each token's position; (B, L): what to add to those of tokens after it).
        """
        if not self.rows:
            nothing = torch.zeros_like(placeholders, dtype=torch.int64)
            return nothing, nothing
        device = placeholders.device
        counts = torch.tensor(self.rows, device=device)
        ends = counts.cumsum(0)
        numbers = torch.arange(len(self.places), device=device) - (ends - counts).repeat_interleave(counts)
        own = self.places.to(device) - numbers
        missing = torch.zeros_like(own)
        missing[ends - 1] = torch.tensor(self.full, device=device) - counts
        times = max(1, int(placeholders.sum()) // len(own))
        first = placeholders[::times]
        own, missing = (
            torch.zeros_like(first, dtype=torch.int64).masked_scatter(first, x).repeat_interleave(times, 0)
            for x in (own, missing)
        )
        after = missing.cumsum(1)
        return own + after - missing, after


def pooled_places(patches: Tensor, side: int, pooled: int) -> Tensor:
    """The number of the token that each patch of a square becomes a part of, where a model pools to a smaller square.

    Args:
        patches: int64, numbers in raster order.
        side: patches along a side.
        pooled: tokens along a side.
    """
    row, column = patches // side, patches % side
    return row * pooled // side * pooled + column * pooled // side
