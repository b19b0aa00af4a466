"""A compressed Qwen-VL against the unmodified model: positions, logits and answers."""

from __future__ import annotations

import pytest
import torch
from support.compressed_qwen import (
    NEW,
    QUESTION,
    TEXT,
    TOKENS,
    answer,
    answer_step_by_step,
    asked,
    asked_of_videos,
    compressed,
    families,
    features,
    full_positions,
    left_of,
    positions_seen,
    repeats_pixels_wrongly,
    told_features,
    with_text_positions,
)

from visionzip_ext import last_zip

pytestmark = families

OPTIONS = [{"dominant": 5, "contextual": 2}, {"keep": 0.4}, {"dominant": 6, "contextual": 0}]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def prompts(family, processor, modality: str, text=None):
    return asked(processor, text=text or TEXT) if modality == "image" else asked_of_videos(family, processor)


@pytest.mark.parametrize("modality", ["image", "video"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_positions_are_those_of_the_full_grid(family, options, side, modality):
    """Mixed sizes, two images in a prompt, a prompt without; a merged token stands where its target is."""
    model, processor = compressed(family, **options)
    stock = family.processor()
    processor.tokenizer.padding_side = stock.tokenizer.padding_side = side
    inputs, full = prompts(family, processor, modality), prompts(family, stock, modality)
    seen = positions_seen(model)
    with torch.no_grad():
        model(**inputs)
    left = left_of(full, last_zip(model), TOKENS[modality])
    ours, expected = seen[0], full_positions(family, full)
    for row, mask in enumerate(inputs["attention_mask"].bool()):
        assert torch.equal(ours[:, row, mask], expected[:, row, left[row]])


@pytest.mark.parametrize("modality", ["image", "video"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_logits_equal_the_unmodified_model_given_the_same_embeddings_and_positions(family, options, modality):
    model, processor = compressed(family, **options)
    inputs = prompts(family, processor, modality)
    full = prompts(family, family.processor(), modality)
    with torch.no_grad():
        logits = model(**inputs).logits
    left = left_of(full, last_zip(model), TOKENS[modality])
    mask = inputs["attention_mask"]
    positions = torch.zeros(3, *mask.shape, dtype=torch.int64)
    positions[:, mask.bool()] = full_positions(family, full)[:, left]
    untouched = told_features(family, model, modality)
    with torch.no_grad():
        expected = untouched(**inputs, position_ids=with_text_positions(positions, mask)).logits
        torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], **CLOSE)
        wrong = with_text_positions(mask.cumsum(-1).expand(3, -1, -1), mask)
        other = untouched(**inputs, position_ids=wrong).logits
    assert not torch.allclose(logits[:2], other[:2], atol=0.01), "positions make no difference"


@pytest.mark.parametrize("modality", ["image", "video"])
def test_answer_is_the_unmodified_models_with_the_dropped_tokens_masked(family, modality):
    """Generation with a cache, against whole forwards of the unmodified model on the full prompt."""
    model, processor = compressed(family, dominant=6, contextual=0)
    inputs = prompts(family, processor, modality)
    full = prompts(family, family.processor(), modality)
    ours = answer(model, inputs)
    left = left_of(full, last_zip(model), TOKENS[modality])
    assert torch.equal(ours, answer_step_by_step(family, full, left))
    assert torch.equal(ours, answer(model, inputs, use_cache=False))


def test_everything_kept_is_what_the_unmodified_model_sees(family):
    model, processor = compressed(family, keep=1.0)
    inputs = prompts(family, processor, "image")
    full = prompts(family, family.processor(), "image")
    assert torch.equal(inputs["input_ids"], full["input_ids"])
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, family.model()(**full).logits, **CLOSE)
    assert torch.equal(answer(model, inputs), answer(family.model(), full))


def test_position_ids_of_the_user_are_respected(family):
    model, processor = compressed(family)
    inputs = asked(processor, text=[QUESTION])
    length = inputs["input_ids"].shape[1]
    given = torch.arange(length).expand(4, 1, -1) * 2
    seen = positions_seen(model)
    with torch.no_grad():
        logits = model(**inputs, position_ids=given).logits
        expected = told_features(family, model)(**inputs, position_ids=given).logits
    assert torch.equal(seen[0], given[1:])
    torch.testing.assert_close(logits, expected, **CLOSE)


def test_positions_asked_for_before_the_encoder_has_run(family):
    """As data loaders do: what `get_rope_index` answers goes through the forward as it is."""
    model, processor = compressed(family)
    inputs = asked(processor, text=TEXT)
    names = [n for n in ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw") if n in inputs]
    positions, _ = model.model.get_rope_index(**{name: inputs[name] for name in names})
    with torch.no_grad():
        expected = model(**inputs).logits
        given = with_text_positions(positions, inputs["attention_mask"])
        torch.testing.assert_close(model(**inputs, position_ids=given).logits, expected, **CLOSE)


@repeats_pixels_wrongly
def test_beam_search(family):
    model, processor = compressed(family)
    together = answer(model, asked(processor, text=TEXT[:3]), num_beams=3)
    assert together.shape == (3, NEW)
    alone = answer(model, asked(processor, text=TEXT[:1]), num_beams=3)
    assert torch.equal(together[:1], alone)
    one_beam = answer(model, asked(processor, text=TEXT[:3]), num_beams=1)
    assert one_beam.shape == (3, NEW)


def test_changed_pixels_of_one_image_never_change_anothers_bits(family):
    model, processor = compressed(family)
    inputs = asked(processor, text=TEXT)
    before = features(model, inputs)
    first = int(inputs["image_grid_thw"][0].prod())
    changed = inputs["pixel_values"].clone()
    changed[first : first + int(inputs["image_grid_thw"][1].prod())] += 1
    after = features(model, inputs | {"pixel_values": changed})
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [True, False, True, True]
