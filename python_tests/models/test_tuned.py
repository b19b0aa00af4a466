"""What a config says of the setting that a checkpoint was tuned with, and where compress warns."""

from __future__ import annotations

import warnings

import pytest
from support.compressed_llava import K, M
from transformers import LlavaForConditionalGeneration

from visionzip_ext import compress, compress_as_configured, mark_tuned, restore


def test_the_mark_is_the_setting_and_outlives_restore_and_saving(model, tmp_path):
    assert mark_tuned(compress(model, dominant=K, contextual=M)) is model
    setting = model.config.visionzip
    assert model.config.visionzip_tuned == setting
    restore(model).save_pretrained(tmp_path)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.visionzip_tuned == setting
    assert not hasattr(loaded.config, "visionzip")


def test_the_same_setting_is_no_reason_for_a_warning(model, tmp_path):
    mark_tuned(compress(model, dominant=K, contextual=M)).save_pretrained(tmp_path)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compress_as_configured(loaded)
        compress(loaded, dominant=K, contextual=M, early_exit=False)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dominant": K + 1}, rf"tuned with dominant={K} .*compressed with dominant={K + 1} now"),
        ({"merge": "mean"}, r"tuned with merge='residual' .*compressed with merge='mean' now"),
        (
            {"contextual": 0, "budget_per": "image"},
            r"contextual=2, budget_per='tile' .*contextual=0, budget_per='image'",
        ),
    ],
)
def test_another_setting_is_told(model, changes, told):
    mark_tuned(compress(model, dominant=K, contextual=M))
    with pytest.warns(RuntimeWarning, match=told) as warned:
        compress(model, **({"dominant": K, "contextual": M} | changes))
    assert warned[0].filename == __file__
    assert model.config.visionzip_tuned["dominant"] == K, "only tuning changes what the weights were tuned for"


def test_a_model_that_is_not_compressed(model):
    with pytest.raises(ValueError, match=r"is not compressed; call visionzip_ext\.compress before tuning"):
        mark_tuned(model)


def test_a_mark_that_is_none(model):
    model.config.visionzip_tuned = {"kept": 1}
    with pytest.raises(ValueError, match=r"config\.visionzip_tuned has unknown keys \['kept'\]"):
        compress(model, dominant=K, contextual=M)
    assert not hasattr(model.config, "visionzip")
