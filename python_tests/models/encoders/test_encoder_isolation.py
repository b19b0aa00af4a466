"""VisionZipEncoder changes one instance, and nothing that outlives it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import transformers
from support import snapshots
from support import tiny_models as tiny
from support.tiny_encoders import (
    CHANNELS,
    pixels,
)

from visionzip_ext import VisionZipEncoder

K, M = 6, 2
POST_LAYERNORM = "vision_model.post_layernorm" if tiny.TRANSFORMERS < (5, 9) else "post_layernorm"


class TestOnlyThisInstance:
    @pytest.mark.parametrize("options", [{}, {"early_exit": False}, {"layer": [1, 2]}, {"layer": -1}])
    def test_detach(self, encoder, rng, options):
        images = pixels(rng)
        with torch.no_grad():
            # transformers installs hooks of its own the first time
            expected = encoder(images, output_hidden_states=True).hidden_states
        before, config, classes = snapshots.instances(encoder), encoder.config.to_dict(), snapshots.classes(encoder)
        wrapped = VisionZipEncoder(encoder, K, M, **options)
        with torch.no_grad():
            wrapped(images)
        assert snapshots.classes(encoder) == classes
        assert snapshots.instances(encoder) != before
        assert wrapped.detach() is encoder
        assert snapshots.instances(encoder) == before
        assert encoder.config.to_dict() == config
        with torch.no_grad():
            got = encoder(images, output_hidden_states=True).hidden_states
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))

    def test_detach_twice(self, clip, rng):
        wrapped = VisionZipEncoder(clip, K, M)
        wrapped.detach()
        assert wrapped.detach() is clip
        with pytest.raises(RuntimeError, match="was detached from its encoder; make a new one"):
            wrapped(pixels(rng))
        assert VisionZipEncoder(clip, K, M)(pixels(rng)).tokens.shape == (2, K + M, CHANNELS)

    def test_the_wrapped_encoder_itself_works_as_before(self, encoder, rng):
        images = pixels(rng)
        with torch.no_grad():
            expected = copy.deepcopy(encoder)(images)
            VisionZipEncoder(encoder, K, M, layer=1)
            got = encoder(images)
        assert torch.equal(got.last_hidden_state, expected.last_hidden_state)
        if expected.pooler_output is not None:
            assert torch.equal(got.pooler_output, expected.pooler_output)

    def test_a_second_instance_with_the_same_config(self, encoder, rng):
        images = pixels(rng)
        second = type(encoder)(encoder.config).eval()
        with torch.no_grad():
            expected = second(images).last_hidden_state
            VisionZipEncoder(encoder, K, M)(images)
            assert torch.equal(second(images).last_hidden_state, expected)
            twin = VisionZipEncoder(second, 3, 1)
            assert twin(images).tokens.shape == (2, 4, CHANNELS)
        assert second.config._attn_implementation != "visionzip"

    def test_a_clip_text_model(self, clip, rng):
        config = transformers.CLIPTextConfig(
            vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        )
        text = transformers.CLIPTextModel(config).eval()
        ids = torch.arange(8)[None]
        before, classes = snapshots.instances(text), snapshots.classes(text)
        with torch.no_grad():
            expected = text(ids).last_hidden_state
            VisionZipEncoder(clip, K, M)(pixels(rng))
            assert torch.equal(text(ids).last_hidden_state, expected)
        assert snapshots.classes(text) == classes
        assert snapshots.instances(text) == before

    def test_two_layers_of_one_encoder(self, encoder, rng):
        images = pixels(rng)
        with torch.no_grad():
            expected = [VisionZipEncoder(copy.deepcopy(encoder), K, M, layer=layer)(images).tokens for layer in (1, -2)]
            wrapped = [VisionZipEncoder(encoder, K, M, layer=layer) for layer in (1, -2)]
            for _ in range(2):
                assert all(torch.equal(w(images).tokens, x) for w, x in zip(wrapped, expected, strict=True))
            wrapped[0].detach()
            assert torch.equal(wrapped[1](images).tokens, expected[1])

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda wrapped: pickle.loads(pickle.dumps(wrapped))])
    def test_a_copy_has_an_encoder_of_its_own(self, encoder, rng, duplicate):
        images = pixels(rng)
        wrapped = VisionZipEncoder(encoder, K, M)
        with torch.no_grad():
            expected = wrapped(images).tokens
            twin = duplicate(wrapped)
            assert torch.equal(twin(images).tokens, expected)
            for parameter in twin.parameters():
                parameter.zero_()
            assert torch.equal(wrapped(images).tokens, expected)
            assert not torch.equal(twin(images).tokens, expected)
            twin.detach()
            assert torch.equal(wrapped(images).tokens, expected)

    @pytest.mark.parametrize("options", [{}, {"early_exit": False}, {"layer": [1, 2]}])
    @pytest.mark.parametrize("arguments", [{}, {"output_hidden_states": True}])
    def test_a_copy_between_forwards_with_gradients(self, clip, rng, options, arguments):
        images = pixels(rng)
        wrapped = VisionZipEncoder(clip, K, M, **options)
        expected = wrapped(images, **arguments).tokens
        assert torch.equal(copy.deepcopy(wrapped)(images, **arguments).tokens, expected)

    @pytest.mark.parametrize("early_exit", [True, False])
    def test_a_copy_after_a_forward_that_failed(self, clip, rng, early_exit):
        images = pixels(rng)
        wrapped = VisionZipEncoder(clip, K, M, early_exit=early_exit)
        expected = wrapped(images).tokens

        def fail(module, args):
            raise KeyError("after the layers")

        hook = clip.get_submodule(POST_LAYERNORM).register_forward_pre_hook(fail)
        with pytest.raises(KeyError, match="after the layers"):
            wrapped(images)
        hook.remove()
        assert torch.equal(copy.deepcopy(wrapped)(images).tokens, expected)

    def test_its_parameters_are_the_encoders(self, encoder):
        wrapped = VisionZipEncoder(encoder, K, M)
        assert {id(p) for p in wrapped.parameters()} == {id(p) for p in encoder.parameters()}
        assert wrapped.state_dict().keys() == {f"encoder.{name}" for name in encoder.state_dict()}
