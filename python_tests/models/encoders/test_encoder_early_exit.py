"""VisionZipEncoder leaves out the layers after the select layer."""

from __future__ import annotations

import copy

import pytest
import torch
from support.tiny_encoders import (
    CHANNELS,
    hidden_states,
    layers_of,
    pixels,
)
from support.tiny_models import LAYERS
from torch import Tensor

from visionzip_ext import VisionZipEncoder

K, M = 6, 2


class TestEarlyExit:
    @staticmethod
    def layers_run(encoder, images, **options) -> tuple[list[int], Tensor]:
        """How often each layer ran, and the tokens."""
        runs = [0] * LAYERS
        for number, layer in enumerate(layers_of(encoder)):

            def count(module, args, number=number):
                runs[number] += 1

            layer.register_forward_pre_hook(count)
        with torch.no_grad():
            tokens = VisionZipEncoder(encoder, K, M, **options)(images).tokens
        return runs, tokens

    @pytest.mark.parametrize("layer", [1, 2, -2, -1])
    def test_later_layers_do_not_run(self, encoder, rng, layer):
        images, other = pixels(rng), copy.deepcopy(encoder)
        runs, tokens = self.layers_run(encoder, images, layer=layer)
        depth = layer % (LAYERS + 1)
        assert runs == [1] * depth + [0] * (LAYERS - depth)
        all_runs, expected = self.layers_run(other, images, layer=layer, early_exit=False)
        assert all_runs == [1] * LAYERS
        assert torch.equal(tokens, expected)
        assert len(layers_of(encoder)) == LAYERS

    def test_asking_for_hidden_states_runs_all(self, encoder, rng):
        images = pixels(rng)
        expected = hidden_states(encoder, images)
        wrapped = VisionZipEncoder(encoder, K, M)
        with torch.no_grad():
            tokens = wrapped(images).tokens
            assert torch.equal(wrapped(images, output_hidden_states=True).tokens, tokens)
            states = encoder(images, output_hidden_states=True).hidden_states
        assert len(states) == len(expected) == LAYERS + 1

    def test_the_layers_are_back_after_an_error(self, encoder, rng):
        wrapped = VisionZipEncoder(encoder, K, M, layer=1)

        def fail(module, args):
            raise KeyError("from a hook")

        hook = layers_of(encoder)[0].register_forward_pre_hook(fail)
        with pytest.raises(KeyError, match="from a hook"):
            wrapped(pixels(rng))
        hook.remove()
        assert len(layers_of(encoder)) == LAYERS
        assert wrapped(pixels(rng)).tokens.shape == (2, K + M, CHANNELS)
