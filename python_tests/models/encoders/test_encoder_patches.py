"""VisionZipEncoder on a tower that takes images of any shape as patches (NaFlex), against each image alone."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from support import tiny_encoders
from support import tiny_models as tiny
from support.tiny_encoders import CHANNELS, HEADS, layers_of
from support.tiny_models import IMAGE_SIZE, LAYERS, PATCH, PATCHES
from torch import Tensor, nn

from visionzip_ext import VisionZipDualEncoder, VisionZipEncoder, compress, reference

K, M = 6, 2
LONGEST = 24
SHAPES = [(4, 4), (2, 5), (3, 8)]


@pytest.fixture
def siglip2() -> nn.Module:
    config = transformers.Siglip2VisionConfig(
        hidden_size=CHANNELS,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_patches=PATCHES,
        patch_size=PATCH,
    )
    return tiny_encoders.randomized(transformers.Siglip2VisionModel(config)).eval()


def batch(rng: torch.Generator, shapes: list[tuple[int, int]], longest: int = LONGEST) -> dict[str, Tensor]:
    """What Siglip2's image processor makes; padding is garbage, so that it is seen if it is used."""
    pixel_values = torch.randn(len(shapes), longest, 3 * PATCH**2, generator=rng)
    mask = torch.zeros(len(shapes), longest, dtype=torch.int32)
    for image, (rows, columns) in enumerate(shapes):
        mask[image, : rows * columns] = 1
    return {"pixel_values": pixel_values, "pixel_attention_mask": mask, "spatial_shapes": torch.tensor(shapes)}


def alone(inputs: dict[str, Tensor], image: int) -> dict[str, Tensor]:
    """One image of a batch, without padding."""
    patches = int(inputs["spatial_shapes"][image].prod())
    own = {name: x[image : image + 1] for name, x in inputs.items()}
    return own | {name: own[name][:, :patches] for name in ("pixel_values", "pixel_attention_mask")}


@torch.no_grad()
def zipped_by_definition(model: nn.Module, inputs: dict[str, Tensor], layer: int = -2) -> tuple[Tensor, ...]:
    """Tokens, indices and assignment, from the attention that an untouched copy gives away."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    keys = []
    attention = layers_of(model)[layer % (LAYERS + 1) - 1].self_attn
    attention.k_proj.register_forward_hook(lambda module, args, output: keys.append(output))
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    by_head = keys[0].unflatten(2, (HEADS, -1)).transpose(1, 2)
    attn = outputs.attentions[layer % (LAYERS + 1) - 1]
    return reference.zip(outputs.hidden_states[layer], by_head, attn, K, M, False, "residual")


class TestShapes:
    @pytest.mark.parametrize("layer", [-1, -2, 1])
    def test_images_of_different_shapes(self, siglip2, rng, layer):
        inputs = batch(rng, SHAPES)
        expected = [zipped_by_definition(siglip2, alone(inputs, image), layer) for image in range(len(SHAPES))]
        with torch.no_grad():
            tokens, decisions = VisionZipEncoder(siglip2, K, M, layer=layer)(**inputs)
        assert tokens.shape == (len(SHAPES), K + M, CHANNELS)
        assert [decision.grid for decision in decisions] == SHAPES
        for image, (own, indices, assignment) in enumerate(expected):
            assert torch.equal(decisions[image].indices, indices)
            assert torch.equal(decisions[image].assignment, assignment)
            torch.testing.assert_close(tokens[image], own[0], rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("longest", [16, LONGEST])
    def test_images_of_one_shape_have_one_decision(self, siglip2, rng, longest):
        inputs = batch(rng, [(2, 8)] * 3, longest)
        expected = [zipped_by_definition(siglip2, alone(inputs, image)) for image in range(3)]
        with torch.no_grad():
            tokens, decision = VisionZipEncoder(siglip2, K, M)(**inputs)
        assert decision.grid == (2, 8)
        assert not decision.has_cls
        assert torch.equal(decision.assignment, torch.cat([assignment for _, _, assignment in expected]))
        torch.testing.assert_close(tokens, torch.cat([own for own, _, _ in expected]), rtol=1e-4, atol=1e-4)

    def test_all_patches_kept_are_the_hidden_state_without_padding(self, siglip2, rng):
        inputs = batch(rng, [(2, 5)] * 2)
        with torch.no_grad():
            expected = copy.deepcopy(siglip2)(**inputs, output_hidden_states=True).hidden_states[-2][:, :10]
            tokens = VisionZipEncoder(siglip2, 10, 0)(**inputs).tokens
        assert torch.equal(tokens, expected)

    def test_gradients_of_different_shapes(self, siglip2, rng):
        VisionZipEncoder(siglip2, K, M)(**batch(rng, SHAPES)).tokens.square().sum().backward()
        assert layers_of(siglip2)[0].mlp.fc1.weight.grad.abs().sum() > 0


class TestRefused:
    def test_an_image_of_fewer_patches_than_the_budget(self, siglip2, rng):
        wrapped = VisionZipEncoder(siglip2, K, M)
        with pytest.raises(ValueError, match=r"ask for 8 tokens of an image, but Siglip2VisionModel makes 6; lower"):
            wrapped(**batch(rng, [(4, 4), (2, 3)]))

    @pytest.mark.parametrize("name", ["pixel_attention_mask", "spatial_shapes"])
    def test_patches_without_what_belongs_to_them(self, siglip2, rng, name):
        inputs = batch(rng, SHAPES)
        del inputs[name]
        with pytest.raises(TypeError, match=rf"takes images as patches, and {name} with them; .*\*\*processor"):
            VisionZipEncoder(siglip2, K, M)(**inputs)

    def test_images_that_are_not_cut_into_patches(self, siglip2):
        with pytest.raises(ValueError, match=r"shape \(2, 3, 56, 56\); expected \(B, patches, channels of a patch\)$"):
            VisionZipEncoder(siglip2, K, M)(torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE))

    def test_where_images_have_one_size(self, siglip2):
        with pytest.raises(TypeError, match=r"images of any shape.* only visionzip_ext\.VisionZipEncoder is made"):
            VisionZipDualEncoder(siglip2, nn.Identity(), K, M)
        with pytest.raises(TypeError, match=r"images of any shape.* only visionzip_ext\.VisionZipEncoder is made"):
            compress(tiny.llava(tiny.llava_config(vision_config=siglip2.config)), dominant=K, contextual=M)
