"""`keep=`: a share of the tokens of each image, tile or frame, in every family."""

from __future__ import annotations

import pytest
import torch
from support.compressed_families import (
    QUESTION,
    compressed,
    families,
    image_features,
    of_fixed_size,
    tiles,
    tokens_of,
    with_video,
)
from support.tiny_families import FRAMES, VIDEO_TOKEN, videos
from support.tiny_models import PATCHES
from transformers import AutoConfig

from visionzip_ext import compress, compress_as_configured, restore

HALF = {False: (7, 1), True: (8, 1)}
"""Half of 16 tokens, of 17 with CLS; 10 in 64 of them, rounded, are contextual."""


def asked(family, processor, count: int = 1):
    return processor(images=family.images(count), text=[QUESTION] * count, return_tensors="pt", padding=True)


@families
def test_a_share_is_a_budget_of_each_tile(family):
    """The same bits as dominant + contextual, in the paper's ratio."""
    model, processor = compressed(family, dominant=None, contextual=None, keep=0.5)
    inputs = asked(family, processor)
    k, m = HALF[family.has_cls]
    assert tokens_of(inputs) == [(k + m) * tiles(family, 0)]
    by_share = image_features(model, inputs)
    compress(model, processor, dominant=k, contextual=m)
    inputs = asked(family, processor)
    assert torch.equal(image_features(model, inputs), by_share)
    restore(model, processor)
    assert tokens_of(asked(family, processor)) == tokens_of(asked(family, family.processor()))


@families
@pytest.mark.parametrize(
    ("bounds", "tokens"), [({"keep": 0.01}, 1), ({"keep": 0.01, "min_tokens": 3}, 3), ({"keep": 1, "max_tokens": 6}, 6)]
)
def test_bounds_of_a_tile(family, bounds, tokens):
    model, processor = compressed(family, dominant=None, contextual=None, **bounds)
    inputs = asked(family, processor, 2)
    assert tokens_of(inputs) == [tokens * tiles(family, number) for number in range(2)]
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()


@of_fixed_size
def test_all_of_the_tokens_and_no_more(family):
    everything = PATCHES + family.has_cls
    for bounds in ({"keep": 1.0}, {"keep": 0.1, "min_tokens": 1000}):
        _, processor = compressed(family, dominant=None, contextual=None, **bounds)
        assert tokens_of(asked(family, processor)) == [everything * tiles(family, 0)]


@with_video
def test_a_share_of_each_frame(family):
    model, processor = compressed(family, dominant=None, contextual=None, keep=0.5)
    inputs = processor(videos=videos(1), text=["USER : <video> what is this"], return_tensors="pt")
    assert tokens_of(inputs, VIDEO_TOKEN) == [FRAMES * sum(HALF[family.has_cls]) + family.newlines]
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()


@families
def test_saved_and_loaded_with_its_share(family, tmp_path):
    share = {"keep": 0.4, "min_tokens": 2, "max_tokens": 6, "merge": "mean"}
    model, processor = compressed(family, dominant=None, contextual=None, **share)
    model.save_pretrained(tmp_path)
    expected = image_features(model, asked(family, processor))
    written = AutoConfig.from_pretrained(tmp_path).visionzip
    assert {name: written[name] for name in share} == share
    loaded, fresh = type(model).from_pretrained(tmp_path).eval(), family.processor()
    compress_as_configured(loaded, fresh)
    assert loaded.model.config.visionzip == model.model.config.visionzip
    torch.testing.assert_close(image_features(loaded, asked(family, fresh)), expected)


@families
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep": 0.0}, ValueError, "keep must be above 0 and at most 1"),
        ({"keep": -0.1}, ValueError, "keep must be above 0 and at most 1"),
        ({"keep": 1.5}, ValueError, "keep must be above 0 and at most 1"),
        ({"keep": float("nan")}, ValueError, "keep must be above 0 and at most 1"),
        ({"keep": "a tenth"}, TypeError, "keep must be a float"),
        ({"keep": 0.1, "dominant": 3}, TypeError, r"both keep=0\.1 and dominant=3"),
        ({"keep": 0.1, "contextual": 3}, TypeError, r"both keep=0\.1 and contextual=3"),
        ({"keep": 0.1, "budget_per": "image"}, ValueError, "budget_per='image' is for dominant= and contextual="),
        ({"keep": 0.1, "min_tokens": 0}, ValueError, "min_tokens must be at least 1, got 0"),
        ({"keep": 0.1, "min_tokens": 9, "max_tokens": 8}, ValueError, "max_tokens=8 is below min_tokens=9"),
        ({"min_tokens": 9}, TypeError, "min_tokens=9 bounds the tokens that a share keeps; give keep="),
    ],
    ids=str,
)
def test_errors_leave_no_trace(family, options, error, message):
    model, processor = family.model(), family.processor()
    kind, state = type(processor), dict(processor.__dict__)
    with pytest.raises(error, match=message):
        compress(model, processor, **options)
    assert type(processor) is kind
    assert processor.__dict__ == state
    assert not hasattr(model.model.config, "visionzip")
