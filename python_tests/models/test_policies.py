"""compress with another policy, and without a row for CLS: placeholders, decisions, features, configs, errors."""

from __future__ import annotations

import copy

import pytest
import torch
from support import compressed_qwen as qwen
from support import tiny_models as tiny
from support.compressed_families import (
    QUESTION,
    K,
    M,
    answer,
    answer_of_untouched,
    as_embeddings,
    compressed,
    image_features,
    tiles,
    tokens_of,
)
from support.compressed_llava import vision_layers
from support.positions import counting_families, kept, positions_seen
from support.tiny_families import FAMILIES
from support.tiny_models import IMAGE_TOKEN, PATCHES, features

from visionzip_ext import compress, compress_as_configured, last_zip, mark_tuned, reference, restore
from visionzip_ext.tokens import grouped_tiles, zip_tiles

LLAVA = FAMILIES[0]
with_cls = pytest.mark.parametrize("family", [f for f in FAMILIES if f.has_cls], ids=str)
without_cls = pytest.mark.parametrize("family", [f for f in FAMILIES if not f.has_cls], ids=str)
TEXT = [QUESTION, "USER : <image> a cat"]


def asked(family, processor):
    return processor(images=family.images(2), text=TEXT, return_tensors="pt", padding=True)


@pytest.mark.parametrize("m", [0, M])
@pytest.mark.parametrize("keep_cls", [True, False])
@pytest.mark.parametrize("policy", ["attention", "distinct"])
def test_features_follow_the_definition_from_eager_attention(model, policy, keep_cls, m):
    untouched = copy.deepcopy(model)
    untouched.model.vision_tower.set_attn_implementation("eager")
    keys = []
    vision_layers(untouched)[-2].self_attn.k_proj.register_forward_hook(lambda *call: keys.append(call[2]))
    rule = {"policy": policy, "keep_cls": keep_cls}
    with torch.no_grad():
        outputs = untouched.model.vision_tower(tiny.pixels(8), output_attentions=True, output_hidden_states=True)
        per_head = keys[0].unflatten(-1, (4, -1)).transpose(1, 2)
        hidden, attention = outputs.hidden_states[-2], outputs.attentions[-2]
        tokens, indices, assignment = reference.zip(hidden, per_head, attention, K, m, has_cls=True, **rule)
        expected = untouched.model.multi_modal_projector(tokens)
        got = features(compress(model, dominant=K, contextual=m, **rule), tiny.pixels(8))
    assert torch.equal(last_zip(model).indices, indices)
    assert torch.equal(last_zip(model).assignment, assignment)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@counting_families
@pytest.mark.parametrize("m", [0, M])
def test_every_family_asks_the_operator_for_the_policy(family, m, monkeypatch):
    """And its decision is the operator's."""
    module, name = (grouped_tiles, "zip_packed") if family.grouped else (zip_tiles, "zip_qk")
    operator, calls = getattr(module, name), []

    def spied(*args, **kwargs):
        result = operator(*args, **kwargs)
        others = operator(*args, **(kwargs | {"policy": "attention"}))
        calls.append((kwargs["policy"], result.indices, others.indices))
        return result

    monkeypatch.setattr(module, name, spied)
    model, processor = compressed(family, policy="distinct", contextual=m)
    inputs = processor(images=family.images(12), text=TEXT * 6, return_tensors="pt", padding=True)
    image_features(model, inputs)
    assert [policy for policy, *_ in calls] == ["distinct"] * len(calls)
    assert any(not torch.equal(ours, theirs) for _, ours, theirs in calls), "the policy makes no difference"


@counting_families
def test_both_sides_count_the_same(family):
    model, processor = family.model(), family.processor()
    compress(model, processor, dominant=K, contextual=0, policy="distinct")
    inputs = asked(family, processor)
    assert tokens_of(inputs) == [K * tiles(family, 0), K * tiles(family, 1)]
    untouched = family.model()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, untouched(**as_embeddings(model, inputs)).logits)
    assert torch.equal(answer(model, inputs), answer_of_untouched(family, model, inputs))
    compress(model, processor, dominant=K, contextual=M, policy="distinct")
    inputs = asked(family, processor)
    assert tokens_of(inputs) == [(K + M) * tiles(family, 0), (K + M) * tiles(family, 1)]
    with torch.no_grad():
        model(**inputs)


@with_cls
@pytest.mark.parametrize("policy", ["attention", "distinct"])
def test_cls_without_a_row(family, policy):
    model, processor = compressed(family, policy=policy, keep_cls=False, contextual=M)
    inputs = asked(family, processor)
    assert tokens_of(inputs) == [(K + M) * tiles(family, 0), (K + M) * tiles(family, 1)]
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, family.model()(**as_embeddings(model, inputs)).logits)
    decisions = last_zip(model)
    for decision in decisions if isinstance(decisions, list) else [decisions]:
        assert decision.indices.shape[1] == decision.dominant == K
        assert (decision.indices > 0).all()
        assert (decision.assignment[:, 0] == -1).all()
        assignment, dominant = decision.of_patches()
        assert torch.equal(assignment, decision.assignment[:, 1:])
        assert dominant == K


@with_cls
@pytest.mark.parametrize("budget_per", ["tile", "image"])
def test_every_patch_kept_is_exactly_what_the_unmodified_model_sees(family, budget_per):
    """CLS among it in no place, as in the model's own features."""
    model, processor = family.model(), family.processor()
    inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
    stock = image_features(model, inputs)
    everything = PATCHES * (tiles(family, 0) if budget_per == "image" else 1)
    layout = {"layout": "native"} if family.tiled else {}
    options = {"contextual": 0, "keep_cls": False, "budget_per": budget_per} | layout
    compress(model, processor, dominant=everything, **options)
    inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
    assert sum(tokens_of(inputs)) == len(stock)
    torch.testing.assert_close(image_features(model, inputs), stock, rtol=1e-4, atol=1e-4)


@with_cls
def test_kept_positions_without_a_row_for_cls(family):
    """With every patch kept, all positions are the unmodified model's."""
    model, processor = family.model(), family.processor()
    stock = asked(family, processor)
    compress(model, processor, dominant=PATCHES, contextual=0, keep_cls=False, **kept(family))
    inputs = asked(family, processor)
    seen = positions_seen(model, family)
    with torch.no_grad():
        logits = model(**inputs).logits
        torch.testing.assert_close(logits, family.model()(**stock).logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(seen[0], torch.arange(inputs["input_ids"].shape[1]).expand_as(seen[0]))


def test_what_is_dropped_of_a_llava_is_as_if_it_were_masked():
    """Without CLS, with kept positions, and with distinct tokens: the unmodified model on the full prompt."""
    model, processor = LLAVA.model(), LLAVA.processor()
    full = asked(LLAVA, processor)
    compress(model, processor, dominant=K, contextual=0, policy="distinct", keep_cls=False, positions="kept")
    inputs = asked(LLAVA, processor)
    with torch.no_grad():
        logits = model(**inputs).logits[inputs["attention_mask"].bool()]
    positions = (full["attention_mask"].cumsum(1) - 1).clamp(min=0)
    full["attention_mask"][full["input_ids"] == IMAGE_TOKEN] = (last_zip(model).assignment[:, 1:] >= 0).flatten().long()
    with torch.no_grad():
        expected = LLAVA.model()(**full, position_ids=positions).logits[full["attention_mask"].bool()]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_defaults_are_64_tokens():
    config = LLAVA.config()
    config.vision_config.image_size = 140
    model = tiny.llava(config)
    for policy in ("attention", "distinct"):
        setting = compress(model, policy=policy).config.visionzip
        assert (setting["dominant"], setting["contextual"]) == (54, 10)


def test_saved_in_the_config_and_applied_again(model, tmp_path):
    compress(model, dominant=K, contextual=0, policy="distinct", keep_cls=False)
    expected = features(model, tiny.pixels(1))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    compress_as_configured(loaded)
    torch.testing.assert_close(features(loaded, tiny.pixels(1)), expected)
    assert loaded.config.visionzip == model.config.visionzip
    assert model.config.visionzip.items() >= {"policy": "distinct", "keep_cls": False, "contextual": 0}.items()
    restore(loaded)
    assert features(loaded, tiny.pixels(1)).shape[1] == PATCHES


def test_tuned_with_another_policy(model):
    mark_tuned(compress(model, dominant=K, contextual=0))
    with pytest.warns(RuntimeWarning, match=r"tuned with policy='attention', keep_cls=True .*policy='distinct', keep_"):
        compress(model, dominant=K, contextual=0, policy="distinct", keep_cls=False)


@qwen.families
@pytest.mark.parametrize(
    ("options", "contextual"),
    [({"dominant": K, "contextual": 0}, 0), ({"dominant": K, "contextual": M}, M), ({"keep": 0.5}, 1)],
    ids=str,
)
def test_qwen(family, options, contextual):
    model, processor = qwen.compressed(family, **options, policy="distinct")
    inputs = qwen.asked(processor)
    counts = [len(rows) for rows in qwen.features(model, inputs)]
    assert qwen.tokens_of(inputs) == [sum(counts)]
    decision = last_zip(model)
    assert decision.contextual == contextual
    assert decision.dominant == counts[0] - contextual
    expected = decision.indices
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()
    if "dominant" in options:
        compress(model, **options, policy="attention")
        qwen.features(model, inputs)
        assert not torch.equal(last_zip(model).indices, expected), "the policy makes no difference"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"policy": "dpp"}, ValueError, 'policy must be "attention" or "distinct", got \'dpp\''),
        ({"keep_cls": 0}, TypeError, "keep_cls must be True or False, got 0 of type int"),
        (
            {"dominant": 15, "keep_cls": False},
            ValueError,
            r"ask for 17 tokens .* CLIPVisionModel without CLS makes 16; .* <= 16",
        ),
    ],
)
def test_bad_input(model, changes, error, message):
    with pytest.raises(error, match=message):
        compress(model, **({"dominant": K, "contextual": M} | changes))
    assert features(model, tiny.pixels(1)).shape[1] == PATCHES


@without_cls
def test_no_cls_that_could_do_without_a_row(family):
    model = family.model()
    with pytest.raises(ValueError, match=rf"keep_cls=False is for .*; {family.name}Model with its \w+ has none: leave"):
        compress(model, dominant=K, keep_cls=False)
    assert not hasattr(model.config, "visionzip")


def test_a_share_of_distinct_tokens_without_cls():
    model, processor = LLAVA.model(), LLAVA.processor()
    compress(model, processor, keep=0.5, policy="distinct", keep_cls=False)
    assert tokens_of(asked(LLAVA, processor)) == [PATCHES // 2] * 2
    features(model, tiny.pixels(1))
    decision = last_zip(model)
    assert (decision.dominant, decision.contextual, decision.keep_cls) == (PATCHES // 2 - 1, 1, False)
    compress(model, processor, keep=1.0, keep_cls=False)
    assert tokens_of(asked(LLAVA, processor)) == [PATCHES] * 2


@qwen.families
def test_qwen_has_no_cls(family):
    with pytest.raises(ValueError, match=r"keep_cls=False is for models whose vision tower has CLS"):
        compress(family.model(), keep=0.5, keep_cls=False)
