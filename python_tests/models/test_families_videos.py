"""Videos through the families that take them."""

from __future__ import annotations

import pytest
import torch
from support.compressed_families import NEW, TOKENS, answer, compressed, flat, tiles, tokens_of, with_video
from support.tiny_families import FRAMES, VIDEO_TOKEN, videos
from support.tiny_models import PATCHES

from visionzip_ext import last_zip, restore

pytestmark = with_video

TEXT = "USER : <video> what is this"


def promised(family, frames: int = FRAMES) -> int:
    return frames * TOKENS + family.newlines


def test_frames_have_the_budget(family):
    model, processor = compressed(family)
    inputs = processor(videos=videos(1), text=[TEXT], return_tensors="pt")
    assert tokens_of(inputs, VIDEO_TOKEN) == [promised(family)]
    assert answer(model, inputs).shape == (1, NEW)
    assert last_zip(model).assignment.shape == (FRAMES, PATCHES + family.has_cls)


def test_the_papers_136_tokens(family):
    """8 frames of 17 (table 3)."""
    model, processor = compressed(family, dominant=14, contextual=2 + family.has_cls)
    inputs = processor(videos=videos(1, frames=8), text=[TEXT], return_tensors="pt")
    assert tokens_of(inputs, VIDEO_TOKEN) == [8 * (16 + family.has_cls) + family.newlines]
    with torch.no_grad():
        model(**inputs)


@pytest.mark.parametrize("padding", [True, "max_length"])
def test_two_videos_and_padding(family, padding):
    model, processor = compressed(family)
    text = ["USER : <video> what", "USER : <video> what is this a cat"]
    length = {"max_length": 150} if padding == "max_length" else {}
    inputs = processor(videos=videos(2), text=text, return_tensors="pt", padding=padding, **length)
    assert tokens_of(inputs, VIDEO_TOKEN) == [promised(family)] * 2
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape
    if length:
        assert inputs["input_ids"].shape[1] == 150
    assert inputs["attention_mask"].sum(1).tolist() == [promised(family) + n for n in (3, 7)]
    with torch.no_grad():
        together = model(**inputs).logits
        alone = model(**processor(videos=videos(2)[:1], text=text[:1], return_tensors="pt")).logits
    real = inputs["attention_mask"][0].bool()
    torch.testing.assert_close(together[0][real], alone[0], rtol=1e-3, atol=1e-3)


def test_image_and_video_in_one_prompt(family):
    model, processor = compressed(family)
    text = ["USER : <image> what <video> is this"]
    inputs = processor(images=family.images(1), videos=videos(1), text=text, return_tensors="pt")
    assert tokens_of(inputs) == [TOKENS * tiles(family, 0)]
    assert tokens_of(inputs, VIDEO_TOKEN) == [promised(family)]
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()


def test_a_budget_for_the_whole_video(family):
    model, processor = compressed(family, dominant=13, contextual=4, budget_per="image")
    inputs = processor(videos=videos(1), text=[TEXT], return_tensors="pt")
    assert tokens_of(inputs, VIDEO_TOKEN) == [17 + family.newlines]
    assert answer(model, inputs).shape == (1, NEW)


def test_everything_kept_is_what_the_tower_says(family):
    model, processor = compressed(family, dominant=PATCHES + family.has_cls, contextual=0)
    pixels = processor(videos=videos(1), text=[TEXT], return_tensors="pt")["pixel_values_videos"]
    with torch.no_grad():
        ours = flat(model.model.get_video_features(pixels))
        tower = getattr(family.model().model, family.towers[-1])
        states = tower(pixels[0], output_hidden_states=True).hidden_states[model.config.vision_feature_layer]
        expected = model.model.multi_modal_projector(states).flatten(0, 1)
    torch.testing.assert_close(ours[: len(expected)], expected, rtol=1e-4, atol=1e-4)


def test_restore(family):
    model, processor = compressed(family)
    restore(model, processor)
    inputs = processor(videos=videos(1), text=[TEXT], return_tensors="pt")
    expected = family.processor()(videos=videos(1), text=[TEXT], return_tensors="pt")
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, family.model()(**expected).logits)
