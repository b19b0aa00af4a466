"""What save_pretrained writes of a compressed model and its processor, and what loading makes of it."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from support import tiny_models as tiny
from support.compressed_llava import TOKENS, K, M, answer, placeholders
from support.tiny_models import PATCHES, features
from transformers import LlavaForConditionalGeneration

from visionzip_ext import compress, compress_as_configured, restore


def test_processor_survives_save_and_load(model, processor, tmp_path):
    compress(model, processor, dominant=K, contextual=M)
    processor.save_pretrained(tmp_path)
    loaded = tiny.loaded_processor(tmp_path)
    inputs = loaded(images=tiny.images(1), text="USER : <image>", return_tensors="pt")
    assert placeholders(inputs) == [TOKENS]
    assert not [path for path in tmp_path.rglob("*.json") if "visionzip" in path.read_text()]


def test_saved_model_is_the_unmodified_one_with_the_setting(model, tmp_path):
    model.generation_config.eos_token_id = 2
    model.save_pretrained(tmp_path / "before")
    compress(model, dominant=K, contextual=M)
    expected = features(model, tiny.pixels(1))
    model.save_pretrained(tmp_path / "after")
    before, after = (json.loads((tmp_path / run / "config.json").read_text()) for run in ("before", "after"))
    setting = after.pop("visionzip")
    assert after == before
    assert (setting["dominant"], setting["contextual"]) == (K, M)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path / "after").eval()
    assert features(loaded, tiny.pixels(1)).shape[1] == PATCHES
    torch.testing.assert_close(features(compress_as_configured(loaded), tiny.pixels(1)), expected)
    restore(loaded)
    loaded.save_pretrained(tmp_path / "restored")
    assert "visionzip" not in (tmp_path / "restored" / "config.json").read_text()


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("tokens", [(K, M), (PATCHES - 1, 0), (PATCHES - 3, 3)])
def test_saved_and_loaded_together_with_its_processor(tmp_path, strategy, tower, tokens):
    model = tiny.llava(tiny.llava_config(tower, vision_feature_select_strategy=strategy))
    processor = tiny.processor(strategy, has_cls=tower == "clip")
    prompts = {"images": tiny.images(1), "text": "USER : <image> what", "return_tensors": "pt"}
    inputs, original = processor(**prompts), processor.num_additional_image_tokens
    expected = answer(model, **inputs)
    compress(model, processor, dominant=tokens[0], contextual=tokens[1])
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)

    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    loaded.generation_config.eos_token_id = None
    its_processor = tiny.loaded_processor(tmp_path)
    compress_as_configured(loaded, its_processor)
    assert placeholders(its_processor(**prompts)) == [sum(tokens)]
    compress(loaded, its_processor, dominant=3, contextual=1)
    assert placeholders(its_processor(**prompts)) == [4]
    restore(loaded, its_processor)
    assert its_processor.num_additional_image_tokens == original
    assert torch.equal(answer(loaded, **its_processor(**prompts)), expected)


def test_a_saved_processor_compressed_to_another_budget(model, processor, tmp_path):
    compress(model, processor, dominant=K, contextual=M)
    processor.save_pretrained(tmp_path)
    its_processor = tiny.loaded_processor(tmp_path)
    restore(compress(model, its_processor, dominant=3, contextual=1), its_processor)
    assert its_processor.num_additional_image_tokens == 1


@pytest.mark.parametrize("per", ["tile", "image"])
def test_a_config_that_an_earlier_version_wrote(model, tmp_path, per):
    """It had `budget` for what is `budget_per` now; loading it is no reason for a warning."""
    compress(model, dominant=K, contextual=M, budget_per=per).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["visionzip"].pop("budget_per") == per
    config["visionzip"]["budget"] = per
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compress_as_configured(loaded)
    assert loaded.config.visionzip == model.config.visionzip
    assert torch.equal(features(loaded, tiny.pixels(1)), features(model, tiny.pixels(1)))


def test_nothing_configured(model):
    with pytest.raises(ValueError, match="has no setting under 'visionzip'"):
        compress_as_configured(model)
