"""restore leaves model and processor as they were."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from support import snapshots
from support import tiny_models as tiny
from support.compressed_llava import TOKENS, K, M, placeholders
from support.tiny_models import PATCHES, features, padded, prompt

from visionzip_ext import compress, restore


def test_model_and_processor_are_as_before(model, processor):
    batch = padded([prompt([1, 5], PATCHES, [7])]) | {"pixel_values": tiny.pixels(1)}
    with torch.no_grad():
        expected = model(**batch).logits
    state, config = snapshots.instances(model), model.config.to_dict()
    processor_state = dict(vars(processor))
    compress(model, processor, dominant=K, contextual=M)
    features(model, tiny.pixels(1))
    assert snapshots.instances(model) != state
    assert restore(model, processor) is model
    assert snapshots.instances(model) == state
    assert model.config.to_dict() == config
    assert vars(processor) == processor_state
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, expected)


def test_after_two_calls_of_compress(model, processor):
    original = processor.num_additional_image_tokens
    features(model, tiny.pixels(1))
    state = snapshots.instances(model)
    for dominant in (K, 3):
        compress(model, processor, dominant=dominant, contextual=M)
        assert features(model, tiny.pixels(1)).shape[1] == dominant + M
        inputs = processor(images=tiny.images(1), text="USER : <image>", return_tensors="pt")
        assert placeholders(inputs) == [dominant + M]
    restore(model, processor)
    assert snapshots.instances(model) == state
    assert processor.num_additional_image_tokens == original


def test_a_refused_budget_leaves_the_earlier_one(model, processor):
    compress(model, processor, dominant=K, contextual=M)
    with pytest.raises(ValueError, match="dominant=50"):
        compress(model, processor, dominant=50, contextual=M)
    with pytest.raises(ValueError, match="patch_size"):
        compress(model, tiny.processor(patch=7), dominant=3, contextual=1)
    assert features(model, tiny.pixels(1)).shape[1] == TOKENS


def test_processor_may_follow_later(model, processor):
    compress(model, processor, dominant=K, contextual=M)
    way_out = r"LlavaProcessor .* still writes 5 \+ 2 placeholders .* visionzip_ext.restore\(model, processor\)"
    with pytest.warns(RuntimeWarning, match=way_out):
        restore(model)
    restore(model, processor)
    assert processor.num_additional_image_tokens == 1


def test_no_warning_of_a_processor_that_is_not_this_models(model, processor):
    other = copy.deepcopy(model)
    compress(model, processor, dominant=K, contextual=M)
    compress(other, processor, dominant=K, contextual=M)
    compress(copy.deepcopy(model), tiny.processor(), dominant=3, contextual=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restore(model)
        restore(other, processor)


def test_nothing_to_restore(model, processor):
    with pytest.raises(ValueError, match="not compressed, there is nothing to restore"):
        restore(model, processor)


def test_an_odd_number_of_the_processors_own_comes_back(model, processor):
    processor.num_additional_image_tokens = 3
    restore(compress(model, processor, dominant=K, contextual=M), processor)
    assert processor.num_additional_image_tokens == 3
