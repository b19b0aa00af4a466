"""Bad input to compress and to a compressed LLaVA: what the message says."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from support import tiny_models as tiny
from support.compressed_llava import TOKENS, K, M, as_by_peft
from support.tiny_models import PATCHES, features, padded, prompt

import visionzip_ext
from visionzip_ext import compress, compress_as_configured, last_zip, restore


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dominant": 0}, ValueError, "dominant must be at least 1, got 0"),
        ({"dominant": -3}, ValueError, "dominant must be at least 1, got -3"),
        ({"contextual": -1}, ValueError, "contextual must be at least 0, got -1"),
        ({"dominant": 5.0}, TypeError, "dominant must be an int, got 5.0 of type float"),
        ({"contextual": "2"}, TypeError, "contextual must be an int, got '2' of type str"),
        ({"dominant": True}, TypeError, "dominant must be an int, got True of type bool"),
        ({"early_exit": "no"}, TypeError, "early_exit must be True or False, got 'no' of type str"),
        ({"merge": "average"}, ValueError, 'merge must be "residual" or "mean", got \'average\''),
        ({"dominant": 16}, ValueError, r"dominant=16 and contextual=2 ask for 18 tokens .* makes 17; .* <= 17"),
    ],
)
def test_budget(model, changes, error, message):
    with pytest.raises(error, match=message):
        compress(model, **({"dominant": K, "contextual": M} | changes))


@pytest.mark.parametrize("integer", [np.int64, np.uint8, torch.tensor])
def test_integers_of_other_types(model, processor, tmp_path, integer):
    compress(model, processor, dominant=integer(K), contextual=integer(M))
    assert features(model, tiny.pixels(1)).shape[1] == TOKENS
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["visionzip"]["dominant"] == K


@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (torch.compile, "model._orig_mod"),
        (torch.nn.DataParallel, "model.module"),
        (as_by_peft, "model.base_model.model"),
        (
            lambda model: torch.nn.DataParallel(torch.compile(as_by_peft(model))),
            "model.module._orig_mod.base_model.model",
        ),
    ],
)
def test_wrapped_model(model, wrap, path):
    for function in (compress, restore, last_zip, visionzip_ext.visionzip, compress_as_configured):
        with pytest.raises(
            TypeError, match=f"around a supported model; pass that, {path}, before or after it is wrapped"
        ):
            function(wrap(model))


@pytest.mark.parametrize(
    ("wrap", "inside"),
    [
        (lambda model: torch.compile(model, backend="eager"), lambda wrapper: wrapper._orig_mod),
        (torch.nn.DataParallel, lambda wrapper: wrapper.module),
        (as_by_peft, lambda wrapper: wrapper.base_model.model),
    ],
)
def test_a_model_may_be_compressed_after_it_was_wrapped(model, wrap, inside):
    """As the message for a wrapped model says."""
    batch = padded([prompt([1, 5], TOKENS, [7])]) | {"pixel_values": tiny.pixels(1)}
    expected = compress(copy.deepcopy(model), dominant=K, contextual=M)(**batch).logits
    torch._dynamo.reset()
    wrapped = wrap(model)
    with torch.no_grad():
        wrapped(**padded([prompt([1, 5], PATCHES, [7])]), pixel_values=tiny.pixels(1))
        compress(inside(wrapped), dominant=K, contextual=M)
        torch.testing.assert_close(wrapped(**batch).logits, expected)


def test_weights_in_double_precision(model):
    with pytest.raises(TypeError, match=r"CLIPVisionModel has parameters of float64; .* call \.float\(\) on the model"):
        compress(model.double(), dominant=K, contextual=M)
    assert features(model, tiny.pixels(1).double()).shape[1] == PATCHES
    assert features(compress(model.float(), dominant=K, contextual=M), tiny.pixels(1)).shape[1] == TOKENS


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        (
            "dominant=54",
            TypeError,
            r"config\.visionzip must be a dict of .*\(dominant, .*, got 'dominant=54' of type str",
        ),
        ([54, 10], TypeError, r"config\.visionzip must be a dict of .*, got \[54, 10\] of type list"),
        (
            {"dominant": 5, "kept": 1, "per": 2},
            ValueError,
            r"config\.visionzip has unknown keys \['kept', 'per'\]; .*merge",
        ),
        ({"budget": "tile", "budget_per": "tile"}, ValueError, r"config\.visionzip has unknown keys \['budget'\]"),
    ],
)
def test_a_setting_in_the_config_that_is_none(model, setting, error, message):
    model.config.visionzip = setting
    with pytest.raises(error, match=message):
        compress_as_configured(model)
    assert features(model, tiny.pixels(1)).shape[1] == PATCHES, "the model was changed all the same"


def test_the_old_name_of_budget_per(model):
    with pytest.warns(
        DeprecationWarning, match=r"compress\(budget='image'\) is now compress\(budget_per='image'\)"
    ) as told:
        compress(model, dominant=K, contextual=M, budget="image")
    assert told[0].filename == __file__
    assert model.config.visionzip["budget_per"] == "image"
    assert "budget" not in model.config.visionzip
    with pytest.raises(TypeError, match="budget is the old name of budget_per; got both"):
        compress(model, dominant=K, contextual=M, budget_per="image", budget="tile")


@pytest.mark.parametrize("broken", [torch.nn.Linear(2, 2), "llava", None])
def test_unknown_model_lists_the_supported_ones(broken):
    for function in (compress, restore, last_zip):
        with pytest.raises(TypeError, match=r"does not know; .*LlavaForConditionalGeneration, LlavaModel"):
            function(broken)


@pytest.mark.parametrize(
    ("processor", "error", "message"),
    [
        (tiny.tokenizer, TypeError, "processor must be the model's LlavaProcessor, got "),
        (
            lambda: tiny.processor(patch=None),
            ValueError,
            "processor.patch_size is None, .* set processor.patch_size = 14",
        ),
        (lambda: tiny.processor(patch=7), ValueError, "processor.patch_size is 7"),
        (lambda: tiny.processor(size=112), ValueError, "images of 112 x 112 pixels, .* takes 56 x 56"),
    ],
)
def test_processor_that_does_not_match(model, processor, error, message):
    with pytest.raises(error, match=message):
        compress(model, processor(), dominant=K, contextual=M)
    assert features(model, tiny.pixels(1)).shape[1] == PATCHES, "the model was changed all the same"


def test_processor_with_another_image_token(model, processor):
    processor.image_token_id = 7
    with pytest.raises(ValueError, match=r"'<image>' has id 7, the model expects 99"):
        compress(model, processor, dominant=K, contextual=M)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ([], "vision_feature_layer is empty"),
        ([-2, 7], "vision_feature_layer=7 is out of range"),
        (5, r"vision_feature_layer=5 is out of range for a vision tower of 4 layers; expected -4..-1 or 1..4"),
        (-6, "vision_feature_layer=-6 is out of range"),
        (0, "vision_feature_layer=0 names the patch embeddings"),
        (-5, "vision_feature_layer=-5 names the patch embeddings"),
    ],
)
def test_select_layer(layer, message):
    model = tiny.llava()
    model.config.vision_feature_layer = layer
    with pytest.raises(ValueError, match=message):
        compress(model, dominant=K, contextual=M)


def test_select_layer_in_a_list():
    model = tiny.llava()
    model.config.vision_feature_layer = [-2]
    assert features(compress(model, dominant=K, contextual=M), tiny.pixels(1)).shape[1] == TOKENS


def test_select_layer_changed_after_compress(compressed):
    with pytest.raises(ValueError, match=r"vision_feature_layer=-3 .* compressed for, hidden state 3 .*compress again"):
        compressed.model.get_image_features(tiny.pixels(1), vision_feature_layer=-3)
    compressed.config.vision_feature_layer = -3
    with pytest.raises(ValueError, match="vision_feature_layer=-3"):
        features(compressed, tiny.pixels(1))


def test_select_strategy(compressed):
    with pytest.raises(ValueError, match='vision_feature_select_strategy must be "default" or "full", got \'cls\''):
        features(compressed, tiny.pixels(1), vision_feature_select_strategy="cls")


def test_image_sizes(compressed):
    with pytest.raises(ValueError, match="image_sizes is only for towers that pack images"):
        compressed.model.get_image_features(tiny.pixels(1), image_sizes=torch.tensor([[56, 56]]))


def test_vision_tower_of_another_kind(model):
    model.model.vision_tower.config.model_type = "pixtral"
    with pytest.raises(TypeError, match=r"vision tower of type 'pixtral' .*supported: clip_vision_model, siglip"):
        compress(model, dominant=K, contextual=M)
