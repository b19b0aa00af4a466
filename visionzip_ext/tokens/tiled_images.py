"""Large images as LLaVA-NeXT and LLaVA-OneVision show them to their encoder: a base tile, and a grid of tiles.

How many tokens an image becomes depends on its size alone, so that a processor can count them before anything is
encoded. Both sides, the model's and the processor's, ask the same `TiledImages`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from visionzip_ext.tokens.budget import Budget, TileBudget
from visionzip_ext.tokens.tiles import Region, Tile

LAYOUTS = ("released", "native")


def check_layout(layout: str) -> None:
    """Raise ValueError unless `layout` is one of `LAYOUTS`."""
    if layout not in LAYOUTS:
        raise ValueError(f'layout must be "released" or "native", got {layout!r}')


@dataclass(frozen=True)
class TiledImage:
    """One image: its tiles, base tile first, then the grid's row by row.

    Attributes:
        tiles: what each tile is to become.
        grid: (rows, columns) of tiles; (0, 0) where there is only the base tile.
        unpadded: the patches of the whole grid that are not padding.
    """

    tiles: list[Tile]
    grid: tuple[int, int]
    unpadded: Region

    @property
    def rows(self) -> int:
        """What its tiles become, newlines not counted."""
        return sum(tile.budget.tokens for tile in self.tiles)


@dataclass(frozen=True)
class TiledImages:
    """How images become tiles, and zipped tiles a sequence. Plain data: processors carry it along.

    Which grid an image of some size is cut into, and what of it is padding, the engine's own functions decide; here
    both are plain numbers.

    Attributes:
        budget: of each tile, or of the whole image.
        patches: along a side of a tile.
        has_cls: a tile's token 0 is CLS.
        layout: the order of an image's tokens.
            "released" (the released implementation's): the base tile's; of the other tiles the kept ones, in raster
            order over the whole grid, then all CLS, then all merged ones. Padding counts as image.
            "native" (the model's own): the base tile's; the other tiles' CLS; then the grid in raster order, a merged
            token at its target's place, a newline after each row. Padding is left out before anything is decided. The
            newlines come on top of the budget: with 24 patches along a side, 2 x 2 tiles and no padding, five tiles of
            32, 64 or 128 tokens become 208, 368 or 688, where the paper's tables (section 4) have 160, 320 and 640.
    """

    budget: Budget
    patches: int
    has_cls: bool
    layout: str = "released"

    @property
    def cls_rows(self) -> int:
        """1 where a tile's CLS takes a row, otherwise 0."""
        return int(self.has_cls and self.budget.keep_cls)

    @property
    def native(self) -> bool:
        """Whether newlines are written and padding is left out."""
        return self.layout == "native"

    def image(self, grid: tuple[int, int], unpadded: Region) -> TiledImage:
        """An image that is shown as its base tile and a grid of tiles.

        Args:
            grid: (rows, columns) of tiles.
            unpadded: the patches of the whole grid that are not padding.
        """
        rows, columns = grid
        budgets = self.tile_budgets(1 + rows * columns)
        if not self.native:
            return TiledImage([Tile(budget) for budget in budgets], grid, unpadded)
        regions = [None, *(self._part(unpadded, row, column) for row in range(rows) for column in range(columns))]
        tiles = [self._clipped(budget, region) for budget, region in zip(budgets, regions, strict=True)]
        return TiledImage(tiles, grid, unpadded)

    def single(self) -> TiledImage:
        """An image that is shown as its base tile alone."""
        return TiledImage([Tile(budget) for budget in self.tile_budgets(1)], (0, 0), Region(0, 0, 0, 0))

    def tile_budgets(self, tiles: int) -> list[TileBudget]:
        """Of each of so many tiles, or frames."""
        return self.budget.of_tiles(tiles, self.patches**2 + self.cls_rows)

    def tokens(self, image: TiledImage) -> int:
        """Tokens that the language model sees of an image."""
        return image.rows + self._newlines(image)

    def arrange(self, image: TiledImage, rows: Tensor, places: Tensor, newline: Tensor) -> Tensor:
        """Order an image's zipped rows.

        Args:
            image: what the rows are of.
            rows: (n, channels): of all its tiles, tile after tile, projected.
            places: (n,): the token of its tile that each row represents.
            newline: (channels,): the model's newline embedding.

        Returns:
            (tokens, channels).
        """
        keys = torch.cat([self._keys(image, places), self._newline_keys(image, places.device)])
        if newlines := self._newlines(image):
            rows = torch.cat([rows, newline.to(rows).expand(newlines, -1)])
        return rows[keys.argsort()]

    def full_places(self, image: TiledImage, places: Tensor, shown: tuple[int, int]) -> tuple[Tensor, int]:
        """Where an image's tokens would stand if all were there, in the native layout.

        Args:
            image: what the rows are of.
            places: (n,): as in `arrange`.
            shown: rows and columns of tokens that the model shows of the grid without compression.

        Returns:
            ((tokens,) int64: of each token of `arrange`, its place, CLS that of the first patch; how many there are).
        """
        base_tile, base_rows = self.patches**2, image.tiles[0].budget.tokens
        top, bottom, left, right = image.unpadded
        width = image.grid[1] * self.patches + 1
        keys = torch.cat([self._keys(image, places), self._newline_keys(image, places.device)])
        # What comes before the grid has a key below zero: the base tile's tokens, and the other tiles' CLS.
        row = (keys // width - top).clamp(min=0) * shown[0] // max(1, bottom - top)
        column = (keys % width - left).clamp(0, right - left) * shown[1] // max(1, right - left)
        place = base_tile + row * (shown[1] + 1) + column
        place = torch.where(keys < 0, base_tile, place)
        place[:base_rows] = (places[:base_rows] - int(self.has_cls)).clamp(min=0)
        lines = shown[0] if image.grid[0] else 1
        return place[keys.argsort()], base_tile + lines * (shown[1] + 1)

    def _newline_keys(self, image: TiledImage, device: torch.device) -> Tensor:
        """Of each newline: a number as those of `_keys`."""
        first = image.unpadded.top  # of a base tile alone: 0, and one line
        width = image.grid[1] * self.patches + 1
        return torch.arange(first + 1, first + self._newlines(image) + 1, device=device) * width - 1

    def _keys(self, image: TiledImage, places: Tensor) -> Tensor:
        """(n,): numbers, all different, by whose order the rows are sorted."""
        rows, columns = image.grid
        width = columns * self.patches + 1  # the last column is the newline's
        after_grid = rows * self.patches * width + 1
        offsets, in_raster, fixed = [], [], []  # of each row: its tile's corner, and its number if not by raster
        for number, (kind, tile_row, tile_column) in enumerate(self._kinds(image)):
            before = kind == "base" or (kind == "cls" and self.native)
            in_raster.append(kind == "kept" or (kind == "merged" and self.native))
            offsets.append(self.patches * (tile_row * width + tile_column))
            # CLS before merged ones, where both come after the grid.
            rank = number + (len(places) if kind == "merged" else 0)
            fixed.append(number - len(places) if before else after_grid + rank)
        offset, raster, other = (torch.tensor(x, device=places.device) for x in (offsets, in_raster, fixed))
        patch = places - int(self.has_cls)
        corner = patch // self.patches * width + patch % self.patches
        return torch.where(raster, offset + corner, other)

    def _kinds(self, image: TiledImage) -> Iterator[tuple[str, int, int]]:
        """Of each row: what it is ("base", "cls", "kept", "merged"), and the row and column of its tile."""
        for number, (budget, _) in enumerate(image.tiles):
            if number == 0:
                yield from [("base", 0, 0)] * budget.tokens
                continue
            tile = divmod(number - 1, image.grid[1])
            cls = self.cls_rows if budget.dominant > 0 else 0
            yield from [("cls", *tile)] * cls
            yield from [("kept", *tile)] * (budget.dominant - cls)
            yield from [("merged", *tile)] * budget.contextual

    def _newlines(self, image: TiledImage) -> int:
        if not self.native:
            return 0
        return image.unpadded.bottom - image.unpadded.top if image.grid[0] else 1

    def _part(self, unpadded: Region, row: int, column: int) -> Region | None:
        """What is not padding of one tile; None where nothing is."""
        n = self.patches

        def within(start: int, stop: int, tile: int) -> tuple[int, int]:
            first = min(max(start - tile * n, 0), n)
            return first, max(first, min(stop - tile * n, n))

        region = Region(*within(unpadded.top, unpadded.bottom, row), *within(unpadded.left, unpadded.right, column))
        return None if region == (0, n, 0, n) else region

    def _clipped(self, budget: TileBudget, region: Region | None) -> Tile:
        """The budget, as far as there are tokens; a tile of nothing but padding becomes nothing, CLS included."""
        if region is None:
            return Tile(budget)
        tokens = region.patches + self.cls_rows if region.patches else 0
        return Tile(budget.at_most(tokens), region)
