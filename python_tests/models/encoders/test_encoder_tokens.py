"""VisionZipEncoder's tokens and decisions, against VisionZip's definition."""

from __future__ import annotations

import pytest
import torch
import transformers
from support import tiny_models as tiny
from support.tiny_encoders import (
    CHANNELS,
    attention_inputs,
    clear_pixels,
    has_cls,
    hidden_states,
    pixels,
    tokens_of,
)
from support.tiny_models import LAYERS, PATCH, PATCHES
from torch import Tensor
from torch.utils._pytree import tree_map_only

from visionzip_ext import VisionZipEncoder, reference

K, M = 6, 2


class TestTokens:
    @pytest.mark.parametrize("merge", ["residual", "mean"])
    @pytest.mark.parametrize("layer", [-1, -2, 2])
    def test_the_definition_on_eager_attention(self, encoder, rng, layer, merge):
        images, inputs = clear_pixels(rng, encoder, layer, K, M)
        tokens, indices, assignment = inputs.zip(K, M, merge)
        with torch.no_grad():
            zipped = VisionZipEncoder(encoder, K, M, layer=layer, merge=merge)(images)
        assert torch.equal(zipped.decision.indices, indices)
        assert torch.equal(zipped.decision.assignment, assignment)
        torch.testing.assert_close(zipped.tokens, tokens, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("early_exit", [True, False])
    @pytest.mark.parametrize("layer", [-1, -2, 1])
    def test_all_tokens_kept_are_the_hidden_state_bit_for_bit(self, encoder, kind, rng, layer, early_exit):
        images = pixels(rng)
        expected = hidden_states(encoder, images)[layer]
        everything = tokens_of(kind, PATCHES)
        with torch.no_grad():
            zipped = VisionZipEncoder(encoder, everything, 0, layer=layer, early_exit=early_exit)(images)
        assert torch.equal(zipped.tokens, expected)
        assert torch.equal(zipped.decision.indices, torch.arange(everything).expand(2, -1))

    def test_the_layer_is_that_of_llava_unless_said(self, clip, rng):
        images = pixels(rng)
        with torch.no_grad():
            zipped = VisionZipEncoder(clip, PATCHES + 1, 0)(images)
        assert torch.equal(zipped.tokens, hidden_states(clip, images)[-2])

    def test_the_defaults_are_the_papers_64_tokens(self, rng):
        large = transformers.CLIPVisionModel(tiny.vision_config(image_size=140))
        zipped = VisionZipEncoder(large)(pixels(rng, 1, 140, 140))
        assert zipped.tokens.shape == (1, 64, CHANNELS)
        assert zipped.decision.indices.shape == (1, 54)

    def test_the_result_unpacks_and_is_a_pytree(self, clip, rng):
        zipped = VisionZipEncoder(clip, K, M)(pixels(rng))
        tokens, decision = zipped
        assert tokens is zipped.tokens is zipped[0]
        assert decision is zipped.decision is zipped[1]
        moved = tree_map_only(Tensor, lambda x: x.to("meta"), zipped)
        assert moved.tokens.is_meta
        assert moved.decision.indices.is_meta
        assert moved.decision.assignment.is_meta
        assert (moved.decision.grid, moved.decision.has_cls) == (decision.grid, decision.has_cls)

    def test_several_layers_are_concatenated_and_the_deepest_decides(self, encoder, rng):
        layers = [1, -2, 2]
        images, inputs = clear_pixels(rng, encoder, -2, K, M)
        states = hidden_states(encoder, images)
        _, indices, assignment = inputs.zip(K, M)
        with torch.no_grad():
            zipped = VisionZipEncoder(encoder, K, M, layer=layers)(images)
        assert torch.equal(zipped.decision.indices, indices)
        assert torch.equal(zipped.decision.assignment, assignment)
        together = torch.cat([states[layer] for layer in layers], -1)
        expected = reference.merge(together, assignment, K, M)
        torch.testing.assert_close(zipped.tokens, expected, rtol=1e-6, atol=1e-6)

    def test_no_contextual_tokens_drops_the_rest(self, encoder, rng):
        images, inputs = clear_pixels(rng, encoder, -2, K, M)
        with torch.no_grad():
            zipped = VisionZipEncoder(encoder, K, 0)(images)
        indices = inputs.zip(K, M)[1]
        assert torch.equal(zipped.decision.indices, indices)
        states = hidden_states(encoder, images)[-2]
        assert torch.equal(zipped.tokens, states.gather(1, indices[..., None].expand(-1, -1, CHANNELS)))

    def test_an_image_does_not_depend_on_its_batch(self, encoder, rng):
        wrapped = VisionZipEncoder(encoder, K, M)
        images = pixels(rng, 5)
        with torch.no_grad():
            together = wrapped(images)
            for i in range(5):
                alone = wrapped(images[i : i + 1])
                torch.testing.assert_close(alone.tokens[0], together.tokens[i], rtol=1e-4, atol=1e-4)
                assert torch.equal(alone.decision.indices[0], together.decision.indices[i])

    @pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers", "dinov3"])
    def test_images_that_are_not_square(self, encoder, rng):
        with torch.no_grad():
            zipped = VisionZipEncoder(encoder, K, M)(pixels(rng, 2, 2 * PATCH, 5 * PATCH))
        assert zipped.decision.grid == (2, 5)
        assert zipped.decision.assignment.shape == (2, 11)
        assert zipped.tokens.shape == (2, K + M, CHANNELS)

    def test_arguments_are_passed_on(self, clip, rng):
        with torch.no_grad():
            zipped = VisionZipEncoder(clip, K, M)(pixels(rng, 2, 84, 84), interpolate_pos_encoding=True)
        assert zipped.decision.grid == (6, 6)

    def test_non_contiguous_images(self, clip, rng):
        wrapped = VisionZipEncoder(clip, K, M)
        images = pixels(rng)
        with torch.no_grad():
            expected = wrapped(images).tokens
            assert torch.equal(wrapped(images.to(memory_format=torch.channels_last)).tokens, expected)
            assert torch.equal(wrapped(images.repeat_interleave(2, 0)[::2]).tokens, expected)

    def test_a_projecting_clip(self, rng):
        config = tiny.vision_config()
        torch.manual_seed(0)
        plain = transformers.CLIPVisionModel(config).eval()
        torch.manual_seed(0)
        projecting = transformers.CLIPVisionModelWithProjection(config).eval()
        projecting.load_state_dict(
            {f"vision_model.{name.removeprefix('vision_model.')}": x for name, x in plain.state_dict().items()},
            strict=False,
        )
        images = pixels(rng)
        with torch.no_grad():
            expected = VisionZipEncoder(plain, K, M)(images).tokens
            assert torch.equal(VisionZipEncoder(projecting, K, M)(images).tokens, expected)


class TestLowPrecision:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_scores_are_float32s_from_its_queries_and_keys(self, encoder, rng, dtype):
        encoder.to(dtype)
        images = pixels(rng).to(dtype)
        hidden = hidden_states(encoder, images)[-2]
        queries, keys = attention_inputs(encoder, images, LAYERS - 1)
        scale = queries.shape[-1] ** -0.5
        with torch.no_grad():
            zipped = VisionZipEncoder(encoder, K, M)(images)
        tokens, indices, assignment = reference.zip_qk(hidden, queries, keys, K, M, scale, has_cls(encoder))
        assert zipped.tokens.dtype == dtype
        assert torch.equal(zipped.decision.indices, indices)
        assert torch.equal(zipped.decision.assignment, assignment)
        torch.testing.assert_close(zipped.tokens, tokens)
