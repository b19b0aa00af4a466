"""Large images in tiles, through the families that show them so."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support.compressed_families import NEW, QUESTION, K, M, answer, compressed, image_features, tiled, tokens_of

from visionzip_ext import compress, last_zip, merge, restore

pytestmark = tiled


def test_640_of_2880(family):
    """108 + 20 of each of five tiles, in the sizes of LLaVA-NeXT, by counting alone."""
    config = family.config()
    pinpoints = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    config.vision_config.image_size, config.image_grid_pinpoints = 336, pinpoints
    model = type(family.model())(config)
    processor = family.processor()
    processor.image_processor.image_grid_pinpoints = pinpoints
    size = {"height": 336, "width": 336}
    processor.image_processor.size = {"shortest_edge": 336} if family.has_cls else size
    processor.image_processor.crop_size = size
    processor.num_image_tokens = 24 * 24
    compress(model, processor, dominant=108, contextual=20)
    image = np.random.default_rng(0).integers(0, 255, (700, 700, 3), dtype=np.uint8)
    assert tokens_of(processor(images=[image], text=[QUESTION], return_tensors="pt")) == [640]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_released_order(family, number):
    """The base tile's; the other tiles' kept ones in raster order; all CLS; all merged; no newline."""
    model, processor = compressed(family)
    image = family.images(3)[number]
    inputs = processor(images=[image], text=[QUESTION], return_tensors="pt")
    ours = image_features(model, inputs)
    decision = last_zip(model)
    rows = _rows_of_tiles(model, inputs, decision)
    rows_of_grid, columns = {0: (1, 2), 1: (2, 1), 2: (2, 2)}[number]
    kept, cls, merged = [], [], []
    for tile in range(rows_of_grid * columns):
        row, column = divmod(tile, columns)
        for i, token in enumerate(decision.indices[tile + 1].tolist()):
            if family.has_cls and token == 0:
                cls.append(rows[tile + 1][i])
                continue
            y, x = divmod(token - family.has_cls, 4)
            kept.append((row * 4 + y, column * 4 + x, rows[tile + 1][i]))
        merged += list(rows[tile + 1][K:])
    in_raster = [row for _, _, row in sorted(kept, key=lambda place: place[:2])]
    expected = torch.stack([*rows[0], *in_raster, *cls, *merged])
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_native_layout_counts_and_generates(family):
    model, processor = compressed(family, layout="native")
    inputs = processor(images=family.images(3), text=[QUESTION] * 3, return_tensors="pt", padding=True)
    assert sum(tokens_of(inputs)) == len(image_features(model, inputs))
    assert answer(model, inputs).shape == (3, NEW)
    assert torch.equal(answer(model, inputs), answer(model, inputs, use_cache=False))


def test_native_layout_never_shows_padding(family):
    model, processor = compressed(family, layout="native")
    processor_inputs = processor(images=[family.images(1)[0]], text=[QUESTION], return_tensors="pt")
    image_features(model, processor_inputs)
    dropped = [(d.assignment[0] == -1).sum().item() for d in last_zip(model)]
    assert dropped[0] == 0, "the base tile has no padding"
    assert sum(dropped) > 0, "the picture is of another shape than its grid"


def test_pixels_and_sizes_that_do_not_match(family):
    model, processor = compressed(family)
    inputs = processor(images=family.images(2), text=[QUESTION] * 2, return_tensors="pt", padding=True)
    with pytest.raises(ValueError, match="image_sizes are of 1 images"):
        model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"][:1])
    with pytest.raises(ValueError, match=r"pixel_values has \d+ tiles, but image_sizes ask for"):
        model.model.get_image_features(inputs["pixel_values"].flatten(0, 1)[:4], inputs["image_sizes"])


def test_processor_with_other_grids(family):
    processor = family.processor()
    processor.image_processor.image_grid_pinpoints = [[56, 56]]
    with pytest.raises(ValueError, match=r"image_grid_pinpoints=\[\(56, 56\)\], the model expects"):
        compress(family.model(), processor, dominant=K, contextual=M)


def test_image_budget_below_the_number_of_tiles(family):
    with pytest.raises(ValueError, match='dominant=4 with budget_per="image" is less than one token for each of 5'):
        compress(family.model(), dominant=4, contextual=M, budget_per="image")


def _rows_of_tiles(model, inputs, decision) -> torch.Tensor:
    """(tiles, k + m, channels): each tile's projected rows, from the decision by `merge`."""
    count = len(decision.indices)
    with torch.no_grad():
        unchanged = copy.deepcopy(model)
        restore(unchanged)
        states = unchanged.model.vision_tower(inputs["pixel_values"][0, :count], output_hidden_states=True)
        hidden = states.hidden_states[model.config.vision_feature_layer]
        rows = merge(hidden, decision.assignment, K, M)
        return model.model.multi_modal_projector(rows)
