"""Which grid of tiles an image of LLaVA-NeXT or LLaVA-OneVision is cut into, and what of the grid is padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import unpad_image

from visionzip_ext.tokens.tiles import Region


@dataclass(frozen=True)
class ImageGrids:
    """The grids that a model chooses from. The library's own functions decide, to the last rounding.

    Plain data: processors carry it along.

    Attributes:
        pinpoints: the (height, width) of the grids, in pixels.
        tile_size: along a side of a tile, in pixels.
        patches: along a side of a tile.
    """

    pinpoints: tuple[tuple[int, int], ...]
    tile_size: int
    patches: int

    @property
    def tile_counts(self) -> tuple[int, int]:
        """The fewest and the most tiles that an image can have, its base tile among them."""
        counts = [1 + rows * columns for rows, columns in map(self._in_tiles, self.pinpoints)]
        return min(counts), max(counts)

    def of_image(self, height: int, width: int) -> tuple[tuple[int, int], Region]:
        """Of an image of so many pixels: (rows, columns) of tiles; the patches of the grid that are not padding."""
        grid = self._in_tiles(select_best_resolution((height, width), list(self.pinpoints)))
        rows, columns = grid[0] * self.patches, grid[1] * self.patches
        numbers = torch.arange(rows * columns).view(1, rows, columns)
        left = unpad_image(numbers, (height, width))[0]
        # Of a very long and thin image nothing may be left.
        top, first = divmod(int(left[0, 0]), columns) if left.numel() else (0, 0)
        return grid, Region(top, top + left.shape[0], first, first + left.shape[1])

    def _in_tiles(self, resolution: tuple[int, int]) -> tuple[int, int]:
        return resolution[0] // self.tile_size, resolution[1] // self.tile_size
