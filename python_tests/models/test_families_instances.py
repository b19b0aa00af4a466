"""compress on one instance of every family: again, restored, copied, saved and loaded."""

from __future__ import annotations

import copy

import pytest
import torch
from support.compressed_families import (
    QUESTION,
    TOKENS,
    K,
    M,
    answer,
    compressed,
    families,
    image_features,
    tiles,
    tokens_of,
)
from support.tiny_models import TRANSFORMERS
from transformers import AutoConfig

from visionzip_ext import compress, compress_as_configured, restore

pytestmark = families

# What the library itself sets in a forward: when hidden states are asked for; in 4.57's LLaVA-NeXT-Video; in 5.0.
_BY_TRANSFORMERS = {
    "_output_capturing_hooks_installed",
    "vision_feature_layer",
    "vision_feature_select_strategy",
    "rope_deltas",
    *(["forward"] if (5, 0) <= TRANSFORMERS < (5, 9) else []),
}
# The library hangs hooks of its own in the forward hooks.
_HOOK_TABLES = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
_PRE_HOOK_TABLES = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")


def test_restore_leaves_everything_as_it_was(family):
    model, processor = family.model(), family.processor()
    attributes = [(m, dict(m.__dict__)) for m in model.modules()]
    kind, state = type(processor), dict(processor.__dict__)
    settings = model.config.to_dict()
    hooks = [[list(getattr(m, table)) for table in _PRE_HOOK_TABLES] for m in model.modules()]
    compress(model, processor, dominant=K, contextual=M)
    inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
    answer(model, inputs)
    restore(model, processor)
    assert model.config.to_dict() == settings
    assert type(processor) is kind
    assert processor.__dict__.keys() == state.keys()
    assert [[list(getattr(m, table)) for table in _PRE_HOOK_TABLES] for m in model.modules()] == hooks
    for module, before in attributes:
        assert module.__dict__.keys() - _BY_TRANSFORMERS == before.keys() - _BY_TRANSFORMERS
        passed_over = {*_HOOK_TABLES, *_BY_TRANSFORMERS}
        assert all(module.__dict__[name] is before[name] for name in before if name not in passed_over)
    inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, family.model()(**inputs).logits)


def test_two_models_with_different_budgets(family):
    one, first = compressed(family)
    other, second = compressed(family, dominant=9, contextual=3)
    untouched, third = family.model(), family.processor()
    for model, processor, tokens in ((one, first, 7), (other, second, 12), (one, first, 7)):
        inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
        assert tokens_of(inputs) == [tokens * tiles(family, 0)]
        with torch.no_grad():
            model(**inputs)
    inputs = third(images=family.images(1), text=QUESTION, return_tensors="pt")
    with torch.no_grad():
        untouched(**inputs)


def test_compress_again_changes_the_budget(family):
    model, processor = family.model(), family.processor()
    kind = type(processor)
    compress(model, processor, dominant=K, contextual=M)
    compress(model, processor, dominant=9, contextual=3)
    inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
    assert tokens_of(inputs) == [12 * tiles(family, 0)]
    with torch.no_grad():
        model(**inputs)
    restore(model, processor)
    assert type(processor) is kind


def test_deep_copies_are_independent(family):
    model, processor = compressed(family)
    twin, its_processor = copy.deepcopy(model), copy.deepcopy(processor)
    restore(model, processor)
    inputs = its_processor(images=family.images(1), text=QUESTION, return_tensors="pt")
    assert tokens_of(inputs) == [TOKENS * tiles(family, 0)]
    with torch.no_grad():
        twin(**inputs)
    restore(twin, its_processor)


@pytest.mark.parametrize("early_exit", [True, False])
def test_a_copy_between_forwards_with_gradients(family, early_exit):
    """Nothing of a forward stays on the model: what has a graph cannot be copied, and holds its memory."""
    model, processor = compressed(family, early_exit=early_exit)
    inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
    expected = model(**inputs).logits
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(model)(**inputs).logits, expected)


def test_saved_and_loaded_with_its_setting(family, tmp_path):
    budget_per = "image" if family.image_budget else "tile"
    options = {"merge": "mean", "budget_per": budget_per, "dominant": 12, "contextual": 4}
    model, processor = compressed(family, **options)
    model.save_pretrained(tmp_path)
    inputs = processor(images=family.images(2), text=[QUESTION] * 2, return_tensors="pt", padding=True)
    expected = image_features(model, inputs)
    assert AutoConfig.from_pretrained(tmp_path).visionzip["budget_per"] == budget_per
    loaded, fresh = type(model).from_pretrained(tmp_path).eval(), family.processor()
    compress_as_configured(loaded, fresh)
    inputs = fresh(images=family.images(2), text=[QUESTION] * 2, return_tensors="pt", padding=True)
    assert tokens_of(inputs) == [16 * (1 if family.image_budget else tiles(family, i)) for i in range(2)]
    torch.testing.assert_close(image_features(loaded, inputs), expected)


def test_attention_implementation_chosen_later(family):
    """Before or after compress, the decision is the same; nothing is silently wrong."""
    model, processor = compressed(family)
    inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
    expected = image_features(model, inputs)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(image_features(model, inputs), expected, rtol=1e-3, atol=1e-3)
