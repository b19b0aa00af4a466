"""Bad input to compress, and models that changed behind its back, in every family."""

from __future__ import annotations

import pytest
import torch
from support import tiny_families, tiny_qwen
from support.compressed_families import (
    QUESTION,
    TOKENS,
    K,
    M,
    compressed,
    families,
    image_features,
    of_fixed_size,
    tiles,
    tokens_of,
)
from support.tiny_families import FAMILIES

from visionzip_ext import VisionZipEncoder, compress


@families
def test_attention_replaced_behind_our_back(family):
    model, processor = compressed(family)
    inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
    tower = getattr(model.model, family.towers[0])
    for module in tower.modules():
        if hasattr(module, "_visionzip_recorder"):
            module.config = tower.config
    with pytest.raises(RuntimeError, match=r"recorded (0 times|for 0 patches) .*call visionzip_ext.compress"):
        image_features(model, inputs)


@families
def test_tower_replaced_since(family):
    model, processor = compressed(family)
    inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
    before, name = image_features(model, inputs), family.towers[0]
    setattr(model.model, name, getattr(family.model(seed=1).model, name))
    with pytest.raises(RuntimeError, match=r"tower, a \w+, was replaced after compress; call visionzip_ext.compress"):
        image_features(model, inputs)
    compress(model, processor, dominant=K, contextual=M)
    after = image_features(model, inputs)
    assert after.shape == before.shape
    assert not torch.equal(after, before)


@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.grouped], ids=str)
def test_a_tower_that_works_for_somebody_else(family):
    """The last of the towers; what had been done by then is undone, and an earlier setting stays."""
    model, processor = compressed(family)
    tower = getattr(model.model, family.towers[-1])
    layer = -3 if family.name == "LlavaOnevision" else -1  # another than its own
    other = VisionZipEncoder(tower, 3, 1, layer=layer)
    name = next(name for name in ("vision_feature_layer", "vision_feature_layers") if hasattr(model.config, name))
    model.config.update({name: layer})
    with pytest.raises(ValueError, match="wrapped in another VisionZipEncoder"):
        compress(model, processor, dominant=9, contextual=3)
    other.detach()
    model.config.update({name: getattr(family.config(), name)})
    inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
    assert tokens_of(inputs) == [TOKENS * tiles(family, 0)]
    with torch.no_grad():
        model(**inputs)


@families
def test_unknown_words(family):
    for options, message in (
        ({"budget_per": "frame"}, 'budget_per must be "tile" or "image", got \'frame\''),
        ({"layout": "raster"}, 'layout must be "released" or "native", got \'raster\''),
        ({"merge": "sum"}, 'merge must be "residual" or "mean"'),
    ):
        with pytest.raises(ValueError, match=message):
            compress(family.model(), dominant=K, contextual=M, **options)


@families
def test_processor_of_another_family(family):
    other = tiny_families.FAMILIES[2 if family.name != "LlavaNext" else 0].processor()
    if family.name == "LlavaNextVideo":
        other = tiny_families.FAMILIES[0].processor()
    with pytest.raises(TypeError, match=f"processor must be the model's .*, got {type(other).__name__}"):
        compress(family.model(), other, dominant=K, contextual=M)


@of_fixed_size
def test_budget_above_the_tokens(family):
    with pytest.raises(ValueError, match=r"ask for 100 tokens of an? (image|tile), but \w+ makes 1[67]"):
        compress(family.model(), dominant=90, contextual=10)


@pytest.mark.parametrize("family", [f for f in (*FAMILIES, *tiny_qwen.FAMILIES) if not f.tiled], ids=str)
def test_layout_where_there_are_no_tiles(family):
    with pytest.raises(ValueError, match='layout="native" is for models that put the tokens of tiles in one order'):
        compress(family.model(), dominant=K, contextual=M, layout="native")
