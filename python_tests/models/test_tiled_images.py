"""How large images become tiles, and zipped tiles a sequence: counted by size alone, checked against plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from visionzip_ext.integrations.transformers.families.image_grids import ImageGrids
from visionzip_ext.tokens.budget import Budget
from visionzip_ext.tokens.tiled_images import LAYOUTS, TiledImage, TiledImages

PATCHES, TILE = 6, 84
GRIDS = [(1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (1, 4), (4, 1), (2, 3)]

sizes = st.tuples(st.integers(8, 700), st.integers(8, 700))
grids = st.lists(st.sampled_from(GRIDS), min_size=1, max_size=5, unique=True)
budgets = st.builds(
    Budget,
    st.integers(9, 40),
    st.integers(0, 20),
    st.just("residual"),
    st.sampled_from(["tile", "image"]),
    keep_cls=st.booleans(),
).filter(lambda budget: budget.tokens <= PATCHES**2)


def tiled(size, grids, budget, has_cls, layout) -> tuple[TiledImages, TiledImage]:
    """How images become tiles, and one of that size."""
    pinpoints = tuple((TILE * rows, TILE * columns) for rows, columns in grids)
    images = TiledImages(budget, PATCHES, has_cls, layout)
    return images, images.image(*ImageGrids(pinpoints, TILE, PATCHES).of_image(*size))


def places_of(images: TiledImages, image, generator) -> torch.Tensor:
    """Rows as `zip_tiles` hands them out: of each tile, CLS and then other tokens of its region."""
    places = []
    for budget, region in image.tiles:
        tokens = torch.arange(PATCHES**2).view(PATCHES, PATCHES)
        if region is not None:
            tokens = tokens[region.top : region.bottom, region.left : region.right]
        tokens = tokens.flatten()[torch.randperm(tokens.numel(), generator=generator)] + images.has_cls
        cls = images.cls_rows if budget.dominant > 0 else 0
        kept = tokens[: budget.dominant - cls].sort().values
        merged = tokens[budget.dominant - cls : budget.tokens - cls].sort().values
        places += [torch.zeros(cls, dtype=torch.int64), kept, merged]
    return torch.cat(places)


@given(size=sizes, grids=grids, budget=budgets, has_cls=st.booleans(), seed=st.integers(0, 2**31))
def test_released_layout(size, grids, budget, has_cls, seed):
    images, image = tiled(size, grids, budget, has_cls, "released")
    places = places_of(images, image, torch.Generator().manual_seed(seed))
    rows = torch.arange(float(len(places))).unsqueeze(1)
    order = images.arrange(image, rows, places, torch.tensor([-1.0])).flatten().tolist()
    assert len(order) == images.tokens(image) == sum(tile.budget.tokens for tile in image.tiles)

    base, kept, cls, merged, start = [], [], [], [], 0
    for number, (share, _) in enumerate(image.tiles):
        own = range(start, start + share.tokens)
        start += share.tokens
        if number == 0:
            base += own
            continue
        tile_row, tile_column = divmod(number - 1, image.grid[1])
        for i, row in enumerate(own):
            if i >= share.dominant:
                merged.append(row)
            elif images.cls_rows and i == 0:
                cls.append(row)
            else:
                y, x = divmod(int(places[row]) - has_cls, PATCHES)
                kept.append((tile_row * PATCHES + y, tile_column * PATCHES + x, row))
    assert order == [*base, *(row for *_, row in sorted(kept)), *cls, *merged]


@given(size=sizes, grids=grids, budget=budgets, has_cls=st.booleans(), seed=st.integers(0, 2**31))
def test_native_layout(size, grids, budget, has_cls, seed):
    """Raster order with a newline after each row that is not padding, and nothing in the padding."""
    images, image = tiled(size, grids, budget, has_cls, "native")
    places = places_of(images, image, torch.Generator().manual_seed(seed))
    rows = torch.arange(float(len(places))).unsqueeze(1)
    order = images.arrange(image, rows, places, torch.tensor([-1.0])).flatten().tolist()
    assert len(order) == images.tokens(image)

    start = image.tiles[0].budget.tokens
    expected = list(range(start))
    lines: dict[int, list] = {y: [] for y in range(image.unpadded.top, image.unpadded.bottom)}
    for number, (share, _) in enumerate(image.tiles[1:]):
        tile_row, tile_column = divmod(number, image.grid[1])
        for i, row in enumerate(range(start, start + share.tokens)):
            if images.cls_rows and i == 0:
                expected.append(row)
                continue
            y, x = divmod(int(places[row]) - has_cls, PATCHES)
            x += tile_column * PATCHES
            assert image.unpadded.left <= x < image.unpadded.right
            lines[tile_row * PATCHES + y].append((x, row))
        start += share.tokens
    for y in sorted(lines):
        expected += [*(row for _, row in sorted(lines[y])), -1]
    assert order == expected


@given(
    size=sizes,
    grids=grids,
    budget=budgets,
    has_cls=st.booleans(),
    scale=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_places_among_all_tokens(size, grids, budget, has_cls, scale, seed):
    """In the native sequence with nothing left out, also of a grid that is shown scaled down."""
    images, image = tiled(size, grids, budget, has_cls, "native")
    places = places_of(images, image, torch.Generator().manual_seed(seed))
    top, bottom, left, right = image.unpadded
    height, width = (bottom - top) // scale, (right - left) // scale
    got, full = images.full_places(image, places, (height, width))
    assert full == PATCHES**2 + height * (width + 1)

    def place(y, x):
        row, column = (y - top) * height // (bottom - top), (x - left) * width // max(1, right - left)
        return PATCHES**2 + row * (width + 1) + column

    cls, start = [], image.tiles[0].budget.tokens
    base = [max(int(token) - has_cls, 0) for token in places[:start]]
    grid = {(y, right): place(y, right) for y in range(top, bottom)}  # newlines
    for number, (share, _) in enumerate(image.tiles[1:]):
        tile_row, tile_column = divmod(number, image.grid[1])
        for token in places[start : start + share.tokens].tolist():
            if images.cls_rows and token == 0:
                cls.append(PATCHES**2)
                continue
            y, x = divmod(token - has_cls, PATCHES)
            y, x = tile_row * PATCHES + y, tile_column * PATCHES + x
            grid[y, x] = place(y, x)
        start += share.tokens
    assert got.tolist() == [*base, *cls, *(grid[at] for at in sorted(grid))]


@given(size=sizes, grids=grids)
def test_padding_is_what_the_library_says(size, grids):
    """A budget for everything leaves as many tokens as LLaVA-NeXT's own unpadding does."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    images, image = tiled(size, grids, Budget(PATCHES**2, 0), False, "native")
    pinpoints = [[TILE * rows, TILE * columns] for rows, columns in grids]
    rows, columns = get_anyres_image_grid_shape(size, pinpoints, TILE)
    left = unpad_image(torch.zeros(1, rows * PATCHES, columns * PATCHES), size)
    assert image.grid == (rows, columns)
    assert images.tokens(image) == PATCHES**2 + left.numel() + left.shape[1]


@pytest.mark.parametrize(("tokens", "expected"), [(32, 208), (64, 368), (128, 688)])
def test_native_newlines_come_on_top_of_the_budget(tokens, expected):
    """A square image of LLaVA-NeXT: 2 x 2 tiles of 24 x 24 patches, so 48 newlines beside the paper's tokens."""
    grids = ImageGrids(((672, 672),), 336, 24)
    counts = {}
    for layout in LAYOUTS:
        images = TiledImages(Budget(tokens - 10, 10), 24, has_cls=True, layout=layout)
        counts[layout] = images.tokens(images.image(*grids.of_image(700, 700)))
    assert counts == {"released": 5 * tokens, "native": expected}


@pytest.mark.parametrize(("tiles", "expected"), [(1, [(12, 5)]), (3, [(4, 1), (4, 2), (4, 2)]), (5, None)])
def test_an_images_budget_is_spread_over_its_tiles(tiles, expected):
    shares = Budget(12, 5, per="image").of_tiles(tiles, 100)
    assert expected is None or shares == expected
    assert sum(share.dominant for share in shares) == 12
    assert sum(share.contextual for share in shares) == 5


def test_an_images_budget_above_what_a_few_tiles_have():
    assert Budget(90, 30, per="image").of_tiles(2, 50) == [(45, 5), (45, 5)]


@pytest.mark.parametrize(("keep_cls", "tokens"), [(True, 17), (False, 16)])
def test_an_images_budget_is_at_most_what_its_tiles_have(keep_cls, tokens):
    """CLS among it if it takes a row."""
    images = TiledImages(Budget(60, 0, per="image", keep_cls=keep_cls), 4, has_cls=True)
    assert [share.tokens for share in images.tile_budgets(2)] == [tokens] * 2
