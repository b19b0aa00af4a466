"""visionzip on models of the original LLaVA repositories, and no mistake of the released package with them."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
import transformers
from support import snapshots
from support import tiny_models as tiny
from support.tiny_encoders import CHANNELS, clear_pixels, hidden_states, layers_of, pixels
from support.tiny_models import LAYERS, PATCHES
from support.tiny_original_llava import (
    GENERATES,
    IMAGE_TOKEN_INDEX,
    ClipTower,
    MultiScaleTower,
    generates,
    original_llava,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from visionzip_ext import compress, compress_as_configured, last_zip, reference, restore, visionzip

K, M = 6, 2
TOKENS = K + M
IMAGE = IMAGE_TOKEN_INDEX


@pytest.fixture
def model() -> nn.Module:
    return original_llava()


# Before transformers 5 `generate` passes `cache_position`, which the repository's `forward` does not take.


def clip_of(model: nn.Module) -> nn.Module:
    return model.get_vision_tower().vision_tower


def answer(model: nn.Module, ids: list[int], images) -> list[int]:
    generated = model.generate(torch.tensor([ids]), images=images, max_new_tokens=5, do_sample=False, pad_token_id=0)
    return generated[0].tolist()


@torch.no_grad()
def features(model: nn.Module, images) -> Tensor | list[Tensor]:
    return model.get_vision_tower()(images)


class TestFeatures:
    def test_the_default_is_191_and_30(self, rng):
        model = original_llava(ClipTower(image_size=224))
        images = pixels(rng, 2, 224, 224)
        assert features(model, images).shape == (2, 256, CHANNELS)
        assert visionzip(model) is model
        assert features(model, images).shape == (2, 191 + 30, CHANNELS)
        assert model.encode_images(images).shape == (2, 221, model.config.hidden_size)

    def test_positional_arguments_as_in_the_released_package(self, model, rng):
        visionzip(model, K, M)
        assert features(model, pixels(rng)).shape == (2, TOKENS, CHANNELS)

    @pytest.mark.parametrize("select_layer", [-2, -1, 2])
    def test_the_definition_on_eager_attention(self, rng, select_layer):
        model = original_llava(ClipTower(select_layer=select_layer))
        images, inputs = clear_pixels(rng, clip_of(model), select_layer, K, M)
        expected = inputs.zip(K, M)[0]
        visionzip(model, dominant=K, contextual=M)
        torch.testing.assert_close(features(model, images), expected, rtol=1e-4, atol=1e-4)

    def test_one_image(self, model, rng):
        visionzip(model, dominant=K, contextual=M)
        assert features(model, pixels(rng, 1)).shape == (1, TOKENS, CHANNELS)

    def test_a_list_of_images(self, model, rng):
        images = pixels(rng, 3)
        visionzip(model, dominant=K, contextual=M)
        together = features(model, images)
        one_by_one = features(model, list(images))
        assert isinstance(one_by_one, list)
        assert [x.shape for x in one_by_one] == [(1, TOKENS, CHANNELS)] * 3
        torch.testing.assert_close(torch.cat(one_by_one), together, rtol=1e-4, atol=1e-4)

    def test_the_decision_of_the_latest_images(self, model, rng):
        with pytest.raises(ValueError, match=r"is not compressed; call visionzip_ext.visionzip\(model\) first"):
            last_zip(model)
        images = pixels(rng, 3)
        visionzip(model, dominant=K, contextual=M)
        assert last_zip(model) is None
        zipped = features(model, images)
        decision = last_zip(model)
        unzipped = features(restore(model), images)  # without CLS, which is kept and first
        patches, dominant = decision.of_patches()
        merged = reference.merge(unzipped, patches, dominant, M)
        torch.testing.assert_close(zipped[:, 1:], merged, rtol=1e-4, atol=1e-4)

    def test_a_decision_for_each_image_of_a_list(self, model, rng):
        images = pixels(rng, 3)
        visionzip(model, dominant=K, contextual=M)
        features(model, images)
        together = last_zip(model)
        features(model, list(images))
        assert [d.assignment.shape for d in last_zip(model)] == [(1, PATCHES + 1)] * 3
        assert torch.equal(torch.cat([d.assignment for d in last_zip(model)]), together.assignment)

    def test_images_of_several_tiles_one_after_another(self, model, rng):
        visionzip(model, dominant=K, contextual=M)
        images = [pixels(rng, 3), pixels(rng, 1), pixels(rng, 1)[0]]
        with torch.no_grad():
            got = model.image_features(images)
            tiles = model.encode_images(torch.cat([images[0], images[1], images[2][None]]))
        assert [len(x) for x in got] == [3 * TOKENS, TOKENS, TOKENS]
        assert torch.equal(torch.cat(got), tiles.flatten(0, 1))

    def test_images_keep_their_dtype(self, model, rng):
        images = pixels(rng)
        model.to(torch.bfloat16)
        before = features(model, images)
        visionzip(model, dominant=K, contextual=M)
        after = features(model, images)
        assert before.dtype == after.dtype == torch.float32
        assert torch.equal(after, after.bfloat16().float()), "the tower did not compute in its own dtype"
        assert features(model, images.half()).dtype == torch.float16

    def test_gradients_reach_the_projector_and_a_tower_that_is_trained(self, model, rng):
        visionzip(model, dominant=K, contextual=M)
        model.encode_images(pixels(rng)).square().sum().backward()
        assert model.model.mm_projector.weight.grad.abs().sum() > 0
        assert all(p.grad is None for p in clip_of(model).parameters())
        clip_of(model).requires_grad_(True)
        model.encode_images(pixels(rng)).square().sum().backward()
        assert layers_of(clip_of(model))[0].mlp.fc1.weight.grad.abs().sum() > 0


class TestWholeModel:
    def test_the_prompt_has_as_many_embeddings(self, model, rng):
        visionzip(model, dominant=K, contextual=M)
        ids = torch.tensor([[1, 5, IMAGE, 7, IMAGE, 8]])
        assert model.prepare_inputs_labels_for_multimodal(ids, pixels(rng)).shape[1] == 4 + 2 * TOKENS

    @generates
    def test_generate(self, model, rng):
        visionzip(model, dominant=K, contextual=M)
        images = pixels(rng)
        lengths = []
        model.model.layers[0].register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
        got = answer(model, [1, 5, IMAGE, 7, IMAGE, 8], images)
        assert len(got) == 5
        assert lengths == [4 + 2 * TOKENS, 1, 1, 1, 1]
        assert answer(model, [1, 5, IMAGE, 7, IMAGE, 8], list(images)) == got

    @pytest.mark.skipif(GENERATES, reason="this transformers can generate with the repository's models")
    def test_where_it_cannot_generate_it_cannot_without_us(self, model, rng):
        for _ in range(2):
            with pytest.raises(TypeError, match="unexpected keyword argument 'cache_position'"):
                answer(model, [1, IMAGE, 5], pixels(rng, 1))
            visionzip(model, K, M)

    def test_logits_are_those_of_the_unmodified_model_on_the_same_features(self, model, rng):
        untouched = copy.deepcopy(model)
        images, ids = pixels(rng, 1), torch.tensor([[1, 5, IMAGE, 7, 8]])
        visionzip(model, dominant=K, contextual=M)
        untouched.model.vision_tower.forward = lambda given: features(model, given)
        with torch.no_grad():
            expected = untouched(ids, images=images).logits
            assert torch.equal(model(ids, images=images).logits, expected)
            other = model(ids, images=pixels(rng, 1)).logits
        assert not torch.allclose(other, expected, atol=1e-2), "the answer does not depend on the image"


class TestCalledAgain:
    def test_a_second_call_changes_the_budget(self, model, rng):
        images = pixels(rng)
        before = snapshots.instances(model)
        for dominant, contextual in ((K, M), (3, 1), (9, 0), (K, M)):
            visionzip(model, dominant, contextual)
            assert features(model, images).shape[1] == dominant + contextual
        fresh = features(visionzip(copy.deepcopy(restore(model)), K, M), images)
        assert snapshots.instances(model) == before
        assert torch.equal(features(visionzip(model, K, M), images), fresh)

    def test_a_refused_call_leaves_the_earlier_one(self, model, rng):
        images = pixels(rng)
        expected = features(visionzip(model, K, M), images)
        with pytest.raises(ValueError, match="dominant=17 and contextual=1 ask for 18 tokens"):
            visionzip(model, 17, 1)
        model.config.mm_patch_merge_type = "spatial"
        with pytest.raises(ValueError, match="mm_patch_merge_type"):
            visionzip(model, 3, 1)
        assert torch.equal(features(model, images), expected)


class TestRestore:
    def test_it_undoes_everything(self, model, rng):
        images = pixels(rng)
        expected = features(model, images)
        text = answer(model, [1, IMAGE, 5], images[:1]) if GENERATES else None
        before, config = snapshots.instances(model), model.config.to_dict()
        visionzip(model, K, M)
        features(model, images)
        assert snapshots.instances(model) != before
        assert restore(model) is model
        assert snapshots.instances(model) == before
        assert model.config.to_dict() == config
        assert torch.equal(features(model, images), expected)
        if GENERATES:
            assert answer(model, [1, IMAGE, 5], images[:1]) == text

    def test_nothing_to_restore(self, model):
        with pytest.raises(ValueError, match="this OriginalLlava is not compressed, there is nothing to restore"):
            restore(model)
        restore(visionzip(model, K, M))
        with pytest.raises(ValueError, match="nothing to restore"):
            restore(model)

    def test_a_forward_of_the_instances_own_comes_back(self, model, rng):
        """accelerate puts one there, for models on several devices."""
        tower = model.get_vision_tower()
        of_the_class = tower.forward

        def forward(images):
            return of_the_class(images)

        tower.forward = forward
        visionzip(model, K, M)
        visionzip(model, 3, 1)
        assert features(model, pixels(rng)).shape[1] == 4
        restore(model)
        assert tower.forward is forward

    def test_weights_and_their_names_stay(self, model):
        before = {name: id(p) for name, p in model.named_parameters()}
        names = list(model.state_dict())
        visionzip(model, K, M)
        assert {name: id(p) for name, p in model.named_parameters()} == before
        assert list(model.state_dict()) == names


class TestOnlyThisInstance:
    def test_no_class_is_patched(self, model, rng):
        before = snapshots.classes(model)
        visionzip(model, K, M)
        features(model, pixels(rng))
        assert snapshots.classes(model) == before
        restore(model)
        assert snapshots.classes(model) == before

    def test_two_models_with_different_budgets(self, rng):
        first, second, third = original_llava(), original_llava(seed=1), original_llava(seed=2)
        images = pixels(rng)
        untouched = features(third, images)
        visionzip(first, K, M)
        visionzip(second, 9, 3)
        for _ in range(2):
            assert features(first, images).shape[1] == K + M
            assert features(second, images).shape[1] == 12
            assert torch.equal(features(third, images), untouched)
        restore(first)
        assert features(first, images).shape[1] == PATCHES
        assert features(second, images).shape[1] == 12

    def test_a_vision_model_replaced_since(self, model, rng):
        tower, images = model.get_vision_tower(), pixels(rng)
        visionzip(model, dominant=K, contextual=M)
        expected, vision_model = features(model, images), tower.vision_tower
        tower.vision_tower = torch.compile(vision_model, backend="eager")
        torch.testing.assert_close(features(model, images), expected)
        tower.vision_tower = copy.deepcopy(clip_of(original_llava()))
        with pytest.raises(RuntimeError, match="was replaced after compress"):
            features(model, images)

    def test_a_deep_copy_carries_its_own(self, model, rng):
        images = pixels(rng)
        expected = features(visionzip(model, K, M), images)
        twin = copy.deepcopy(model)
        assert torch.equal(features(twin, images), expected)
        with torch.no_grad():
            for parameter in clip_of(twin).parameters():
                parameter.zero_()
        assert not torch.equal(features(twin, images), expected), "the copy runs the original's weights"
        assert torch.equal(features(model, images), expected)
        visionzip(twin, 3, 1)
        assert features(model, images).shape[1] == TOKENS
        restore(twin)
        assert features(twin, images).shape[1] == PATCHES
        assert features(model, images).shape[1] == TOKENS


class TestRefused:
    @pytest.mark.parametrize("merge_type", ["spatial", "spatial_unpad"])
    def test_tiles_that_are_put_together_by_place(self, merge_type, rng):
        model = original_llava(mm_patch_merge_type=merge_type)
        before = snapshots.instances(model)
        message = (
            f"mm_patch_merge_type is '{merge_type}'.*set it to \"flat\", or take .* LlavaNextForConditionalGeneration"
        )
        with pytest.raises(ValueError, match=message):
            visionzip(model, K, M)
        assert snapshots.instances(model) == before
        model.config.mm_patch_merge_type = "flat"
        assert features(visionzip(model, K, M), pixels(rng)).shape[1] == TOKENS

    def test_a_tower_that_puts_scales_together(self):
        model = original_llava(MultiScaleTower())
        with pytest.raises(
            ValueError, match="this MultiScaleTower makes features of 64 channels, its vision model of 32"
        ):
            visionzip(model, K, M)

    def test_a_tower_that_is_not_loaded(self, rng):
        model = original_llava(ClipTower(delay_load=True))
        with pytest.raises(
            ValueError, match=r"this ClipTower has not loaded its vision tower; call load_model\(\) first"
        ):
            visionzip(model, K, M)
        model.get_vision_tower().load_model()
        assert features(visionzip(model, K, M), pixels(rng)).shape[1] == TOKENS

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ((0, M), ValueError, "dominant must be at least 1, got 0"),
            ((K, -1), ValueError, "contextual must be at least 0, got -1"),
            ((K, 2.0), TypeError, r"contextual must be an int, got 2\.0 of type float"),
            (
                (),
                ValueError,
                "dominant=191 and contextual=30 ask for 221 tokens of an image, but CLIPVisionModel makes 17",
            ),
        ],
    )
    def test_budgets(self, model, arguments, error, message):
        with pytest.raises(error, match=message):
            visionzip(model, *arguments)
        assert "forward" not in vars(model.get_vision_tower())

    def test_the_other_function(self, model):
        for function in (compress, compress_as_configured):
            with pytest.raises(TypeError, match=r"original LLaVA repository; call visionzip_ext.visionzip\(model, dom"):
                function(model)
        for function in (visionzip, restore, last_zip):
            with pytest.raises(TypeError, match=r"around a supported model; pass that, model\.module"):
                function(nn.DataParallel(model))

    def test_models_of_another_kind(self):
        with pytest.raises(
            TypeError, match=r"which VisionZip does not know; .*wrap its vision encoder in .*VisionZipEncoder"
        ):
            visionzip(nn.Linear(2, 2))
        without_tower = original_llava()
        without_tower.model.vision_tower = None
        with pytest.raises(TypeError, match="OriginalLlava, which VisionZip does not know"):
            visionzip(without_tower)


class TestModelsOfTransformers:
    def test_it_is_compress(self, rng):
        images = pixels(rng)
        expected = tiny.features(compress(tiny.llava(), dominant=K, contextual=M), images)
        model = tiny.llava()
        assert visionzip(model, K, M) is model
        assert torch.equal(tiny.features(model, images), expected)
        assert last_zip(model).indices.shape == (2, K)
        assert tiny.features(restore(model), images).shape[1] == PATCHES

    def test_the_default_is_191_and_30(self):
        with pytest.raises(ValueError, match="dominant=191 and contextual=30 ask for 221 tokens"):
            visionzip(tiny.llava())


class Operations(TorchDispatchMode):
    """Notes the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket._qualified_op_name)
        return function(*args, **(kwargs or {}))


WAITS_FOR_THE_DEVICE = {"nonzero", "masked_select", "_local_scalar_dense", "is_nonzero", "equal", "_unique2"}


class TestMistakesOfTheReleasedPackage:
    """Each was found in its code or in a port of it."""

    def test_a_token_too_many(self, model, rng):
        """dominant counts CLS."""
        images, inputs = clear_pixels(rng, clip_of(model), -2, K, M)
        tokens = features(visionzip(model, K, M), images)
        assert tokens.shape[1] == K + M
        cls, best = inputs.hidden[:, 0], inputs.attn[:, :, 0, 1:].sum(1).topk(K - 1, dim=1).indices + 1
        torch.testing.assert_close(tokens[:, 0], cls, rtol=1e-4, atol=1e-4)
        kept = inputs.hidden.gather(1, best.sort(1).values[..., None].expand(-1, -1, CHANNELS))
        torch.testing.assert_close(tokens[:, 1:K], kept, rtol=1e-4, atol=1e-4)

    def test_kept_tokens_in_the_order_of_their_scores(self, model, rng):
        """They stay in raster order, in which their neighbours' positions are."""
        images = pixels(rng, 4)
        states = hidden_states(clip_of(model), images)[-2]
        tokens = features(visionzip(model, K, M), images)[:, :K]
        place = (tokens[:, :, None] == states[:, None]).all(-1)
        assert (place.sum(-1) == 1).all()
        place = place.int().argmax(-1)
        assert (place[:, 1:] > place[:, :-1]).all()

    def test_a_metric_averaged_over_channels(self, model, rng):
        """The mean is over heads, in images where the other would assign otherwise."""
        visionzip(model, K, M)
        for _ in range(20):
            images, inputs = clear_pixels(rng, clip_of(model), -2, K, M)
            tokens, _, assignment = inputs.zip(K, M)
            over_channels = reference.select(inputs.keys.mean(-1).transpose(1, 2), inputs.attn, K, M)[1]
            torch.testing.assert_close(features(model, images), tokens, rtol=1e-4, atol=1e-4)
            if not torch.equal(assignment, over_channels):
                return
        raise AssertionError("20 times images in which both metrics assign alike: they ought to be rare")

    @pytest.mark.parametrize("contextual", [PATCHES + 1 - K, PATCHES - K, 6])
    def test_as_many_contextual_tokens_as_remain(self, model, rng, contextual):
        images = pixels(rng)
        tokens = features(visionzip(model, K, contextual), images)
        assert tokens.shape[1] == K + contextual
        assert tokens.isfinite().all()

    def test_more_contextual_tokens_than_remain(self, model):
        with pytest.raises(
            ValueError, match=r"ask for 18 tokens .* makes 17; lower them so that dominant \+ contextual"
        ):
            visionzip(model, K, PATCHES + 2 - K)

    def test_images_that_are_not_contiguous(self, model, rng):
        images = pixels(rng)
        expected = features(visionzip(model, K, M), images)
        for other in (
            images.to(memory_format=torch.channels_last),
            images.repeat_interleave(2, 0)[::2],
            images.transpose(2, 3).contiguous().transpose(2, 3),
        ):
            assert not other.is_contiguous()
            assert torch.equal(features(model, other), expected)

    def test_waiting_for_the_device(self, model, rng):
        """Boolean masks, of which the device alone knows the count, make the host wait."""
        visionzip(model, K, M)
        images = pixels(rng)
        with Operations() as seen, torch.no_grad():
            model.encode_images(images)
        names = {name.split("::")[1] for name in seen.names}
        assert {"zip_qk", "addmm"} <= names or {"zip_qk", "linear"} <= names
        assert not names & WAITS_FOR_THE_DEVICE

    def test_the_last_layer_computed_and_thrown_away(self, model, rng):
        visionzip(model, K, M)
        ran = []
        for number, layer in enumerate(layers_of(clip_of(model))):
            layer.register_forward_pre_hook(lambda module, args, number=number: ran.append(number))
        features(model, pixels(rng))
        assert ran == list(range(LAYERS - 1))

    def test_attention_matrices(self, model, rng):
        """None is asked for, and the attention implementation stays."""
        clip_of(model).set_attn_implementation("sdpa")
        visionzip(model, K, M)
        assert clip_of(model).config._attn_implementation == "sdpa"
        with Operations() as seen, torch.no_grad():
            model.encode_images(pixels(rng))
        names = {name.split("::")[1] for name in seen.names}
        assert any("scaled_dot_product" in name for name in names)
        assert not any("softmax" in name for name in names)

    def test_an_image_that_depends_on_its_batch(self, model, rng):
        visionzip(model, K, M)
        images = pixels(rng, 4)
        together = features(model, images)
        swapped = features(model, images.flip(0)).flip(0)
        torch.testing.assert_close(swapped, together, rtol=1e-4, atol=1e-4)

    def test_state_that_breaks_re_entrancy(self, model, rng):
        """Two threads, and a call in the middle of another."""
        visionzip(model, K, M)
        batches = [pixels(rng, 1 + i % 3) for i in range(12)]
        expected = [features(model, images) for images in batches]
        wrong = []

        def work(first: int) -> None:
            for _ in range(5):
                for images, tokens in list(zip(batches, expected, strict=True))[first::2]:
                    if not torch.equal(features(model, images), tokens):
                        wrong.append(first)

        threads = [threading.Thread(target=work, args=(first,)) for first in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

        inner = []

        def in_between(module, args):
            if not inner:
                inner.append(None)
                inner[0] = features(model, batches[1])

        hook = layers_of(clip_of(model))[1].register_forward_pre_hook(in_between)
        outer = features(model, batches[0])
        hook.remove()
        assert torch.equal(outer, expected[0])
        assert torch.equal(inner[0], expected[1])

    def test_a_text_encoder_beside_it(self, model, rng):
        """The released package patches CLIPAttention and CLIPEncoderLayer, which CLIP's text encoder has too."""
        config = transformers.CLIPTextConfig(
            vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        )
        text, ids = transformers.CLIPTextModel(config).eval(), torch.arange(8)[None]
        with torch.no_grad():
            expected = text(ids).last_hidden_state
            features(visionzip(model, K, M), pixels(rng))
            assert torch.equal(text(ids).last_hidden_state, expected)
