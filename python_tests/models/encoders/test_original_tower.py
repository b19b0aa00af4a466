"""VisionZipEncoder around a tower of the original LLaVA repositories."""

from __future__ import annotations

import pytest
import torch
from support.tiny_encoders import (
    Tower,
    hidden_states,
    pixels,
)
from support.tiny_models import PATCHES

from visionzip_ext import VisionZipEncoder

K, M = 6, 2


class TestTower:
    @pytest.mark.parametrize("select_layer", [-2, -1, 1])
    def test_its_layer_is_taken(self, clip, rng, select_layer):
        images = pixels(rng)
        expected = hidden_states(clip, images)[select_layer]
        wrapped = VisionZipEncoder(Tower(clip, select_layer), PATCHES + 1, 0)
        assert wrapped.encoder is clip
        with torch.no_grad():
            assert torch.equal(wrapped(images).tokens, expected)

    def test_another_layer_may_be_said(self, clip, rng):
        images = pixels(rng)
        with torch.no_grad():
            zipped = VisionZipEncoder(Tower(clip, -1), PATCHES + 1, 0, layer=2)(images)
        assert torch.equal(zipped.tokens, hidden_states(clip, images)[2])
