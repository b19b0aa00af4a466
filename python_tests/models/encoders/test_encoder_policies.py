"""VisionZipEncoder and VisionZipDualEncoder with another policy, and without a row for CLS."""

from __future__ import annotations

import pytest
import torch
from support.tiny_encoders import attention_inputs, copy_of, has_cls, hidden_states, pixels
from support.tiny_encoders import encoder as tiny_encoder
from support.tiny_models import LAYERS, PATCH, PATCHES

from visionzip_ext import VisionZipDualEncoder, VisionZipEncoder, merge, zip_qk

K, M = 6, 2


@pytest.mark.parametrize("m", [0, M])
@pytest.mark.parametrize("keep_cls", [True, False])
def test_the_operators_own_result(encoder, rng, keep_cls, m):
    if not keep_cls and not has_cls(encoder):
        pytest.skip("no CLS")
    images = pixels(rng)
    rule = {"policy": "distinct", "keep_cls": keep_cls}
    with torch.no_grad():
        hidden = hidden_states(encoder, images)[-2]
        queries, keys = attention_inputs(encoder, images, LAYERS - 1)
        expected = zip_qk(hidden, queries, keys, K, m, has_cls=has_cls(encoder), **rule)
    with torch.no_grad():
        zipped = VisionZipEncoder(encoder, K, m, layer=-2, **rule)(images)
    assert torch.equal(zipped.decision.indices, expected.indices)
    assert torch.equal(zipped.decision.assignment, expected.assignment)
    torch.testing.assert_close(zipped.tokens, expected.tokens, rtol=1e-4, atol=1e-4)


def test_every_patch_kept_is_the_hidden_state_without_cls(clip, rng):
    images = pixels(rng)
    expected = hidden_states(clip, images)[-2][:, 1:]
    with torch.no_grad():
        zipped = VisionZipEncoder(clip, PATCHES, 0, keep_cls=False)(images)
    assert torch.equal(zipped.tokens, expected)


def test_windows_of_distinct_tokens(clip, rng):
    images, windows = pixels(rng), torch.nn.Upsample(scale_factor=2)
    encoder = VisionZipDualEncoder(copy_of(clip), windows, K, M, policy="distinct")
    with torch.no_grad():
        tokens, cells, decision = encoder(images, images[:, :, :4, :4])
        alone = VisionZipEncoder(copy_of(clip), K, M, policy="distinct", keep_cls=False)(images)
    torch.testing.assert_close(tokens, alone.tokens)
    assert torch.equal(decision.of_patches()[0], alone.decision.of_patches()[0])
    patches, dominant = alone.decision.of_patches()
    places = torch.arange(PATCHES)[None, :, None].expand(len(images), -1, 1).float()
    assert torch.equal(merge(places, patches, dominant, M)[:, :K, 0].long() + 1, alone.decision.indices)
    assert cells.shape[:2] == tokens.shape[:2]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"policy": "dpp"}, ValueError, 'policy must be "attention" or "distinct", got \'dpp\''),
        ({"keep_cls": None}, TypeError, "keep_cls must be True or False, got None of type NoneType"),
        ({"dominant": 15, "keep_cls": False}, ValueError, "ask for 17 tokens .* CLIPVisionModel without CLS makes 16"),
    ],
)
def test_bad_input(clip, changes, error, message):
    with pytest.raises(error, match=message):
        VisionZipEncoder(clip, **({"dominant": K, "contextual": M} | changes))


def test_a_smaller_image_than_the_encoders_own(clip, rng):
    small, options = pixels(rng, 1, 2 * PATCH, 2 * PATCH), {"interpolate_pos_encoding": True}
    with torch.no_grad():
        assert VisionZipEncoder(clip, 4, 0, keep_cls=False)(small, **options).tokens.shape[1] == 4
        too_many = VisionZipEncoder(copy_of(clip), 5, 0, keep_cls=False)
        with pytest.raises(ValueError, match="ask for 5 tokens of an image, but CLIPVisionModel without CLS makes 4"):
            too_many(small, **options)


def test_no_cls_that_could_do_without_a_row():
    with pytest.raises(ValueError, match="keep_cls=False is for encoders with CLS, which SiglipVisionModel has not"):
        VisionZipEncoder(tiny_encoder("siglip"), K, M, keep_cls=False)
