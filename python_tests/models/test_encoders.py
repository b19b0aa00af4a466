"""VisionZipEncoder and VisionZipDualEncoder on tiny random encoders, against VisionZip's definition."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
import transformers
from support import snapshots, tiny_encoders
from support import tiny_models as tiny
from support.tiny_encoders import (
    CHANNELS,
    KINDS,
    clear_pixels,
    has_cls,
    hidden_states,
    layers_of,
    pixels,
    tokens_of,
    without_registers,
)
from support.tiny_models import IMAGE_SIZE, LAYERS, PATCH, PATCHES
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from visionzip_ext import VisionZipDualEncoder, VisionZipEncoder, compress, reference, restore

K, M = 6, 2
POST_LAYERNORM = "vision_model.post_layernorm" if tiny.TRANSFORMERS < (5, 9) else "post_layernorm"


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def encoder(kind) -> nn.Module:
    return tiny_encoders.encoder(kind)


@pytest.fixture
def clip() -> nn.Module:
    return tiny_encoders.encoder("clip")


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

    @pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers"])
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
        untouched = copy.deepcopy(encoder)
        projections = {}
        for name, module in layers_of(untouched)[-2].named_modules():
            if name.endswith(("q_proj", "query", "k_proj", "key")):
                which = "queries" if "q" in name.split(".")[-1] else "keys"
                module.register_forward_hook(
                    lambda module, args, output, which=which: projections.update({which: output})
                )
        hidden = hidden_states(untouched, images)[-2]
        queries, keys = (
            projections[which].unflatten(2, (tiny_encoders.HEADS, -1)).transpose(1, 2) for which in ("queries", "keys")
        )
        queries, keys = (without_registers(encoder, x) for x in (queries, keys))
        scale = queries.shape[-1] ** -0.5
        with torch.no_grad():
            zipped = VisionZipEncoder(encoder, K, M)(images)
        tokens, indices, assignment = reference.zip_qk(hidden, queries, keys, K, M, scale, has_cls(encoder))
        assert zipped.tokens.dtype == dtype
        assert torch.equal(zipped.decision.indices, indices)
        assert torch.equal(zipped.decision.assignment, assignment)
        torch.testing.assert_close(zipped.tokens, tokens)


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


class TestTorch:
    def test_compiled_in_one_graph(self, encoder, rng):
        images = pixels(rng)
        wrapped = VisionZipEncoder(encoder, K, M)
        torch._dynamo.reset()
        compiled = torch.compile(wrapped, backend="aot_eager", fullgraph=True)
        with torch.no_grad():
            expected = wrapped(images)
            got = compiled(images)
        torch.testing.assert_close(got.tokens, expected.tokens)
        assert torch.equal(got.decision.indices, expected.decision.indices)
        assert torch.equal(got.decision.assignment, expected.decision.assignment)
        with torch.no_grad():
            assert torch.equal(wrapped(images).tokens, expected.tokens)
        assert len(layers_of(encoder)) == LAYERS

    def test_a_compiled_encoder_in_its_place(self, encoder, rng):
        images = pixels(rng)
        wrapped = VisionZipEncoder(encoder, K, M)
        torch._dynamo.reset()
        graphs = CompileCounterWithBackend("aot_eager")
        with torch.no_grad():
            expected = wrapped(images).tokens
            wrapped.encoder = torch.compile(wrapped.encoder, backend=graphs, fullgraph=True)
            torch.testing.assert_close(wrapped(images).tokens, expected)
        assert graphs.frame_count == 1

    def test_gradients_are_those_of_plain_pytorch_with_the_same_decision(self, encoder, rng):
        images = pixels(rng)
        untouched = copy.deepcopy(encoder)
        zipped = VisionZipEncoder(encoder, K, M)(images)
        (zipped.tokens**2).sum().backward()
        state = without_registers(encoder, untouched(images, output_hidden_states=True).hidden_states[-2])
        (reference.merge(state, zipped.decision.assignment, K, M) ** 2).sum().backward()
        expected = {name: p.grad for name, p in untouched.named_parameters() if p.grad is not None}
        got = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
        assert got.keys() == expected.keys()
        assert len(got) > 10 * (LAYERS - 1)
        largest = max(float(gradient.abs().max()) for gradient in expected.values())
        for name, gradient in expected.items():
            torch.testing.assert_close(
                got[name], gradient, rtol=1e-3, atol=1e-6 * largest, msg=lambda text, name=name: f"{name}: {text}"
            )

    @pytest.mark.parametrize("use_reentrant", [True, False])
    def test_gradient_checkpointing(self, encoder, rng, use_reentrant):
        images = pixels(rng)
        wrapped = VisionZipEncoder(encoder, K, M).train()
        wrapped(images).tokens.square().sum().backward()
        expected = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
        wrapped.zero_grad()
        encoder.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        runs = []
        for name, module in layers_of(encoder)[0].named_modules():
            if name.endswith(("q_proj", "query")):
                module.register_forward_hook(lambda *call: runs.append(1))
        wrapped(images).tokens.square().sum().backward()
        assert len(runs) == 2, "nothing was recomputed, so nothing was tested"
        got = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
        assert got.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(got[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


class Tower(nn.Module):
    """Holds a vision model like the tower of the original LLaVA repositories."""

    def __init__(self, vision_tower: nn.Module | None, select_layer: int = -2):
        super().__init__()
        self.select_layer = select_layer
        if vision_tower is not None:
            self.vision_tower = vision_tower


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


class TestBadInput:
    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: nn.Linear(2, 2), TypeError, "encoder is a torch.nn.modules.linear.Linear; expected a CLIPVision"),
            (lambda: None, TypeError, "encoder is a builtins.NoneType; expected a CLIPVisionModel, SiglipVisionModel"),
            (lambda: SimpleNamespace(config={}), TypeError, "encoder is a types.SimpleNamespace; expected"),
            (lambda: Tower(nn.Linear(2, 2)), TypeError, "encoder is a torch.nn.modules.linear.Linear; expected"),
            (lambda: Tower(None), ValueError, r"this Tower has not loaded its vision tower; call load_model\(\) first"),
            (
                lambda: tiny.llava(),
                TypeError,
                r"type 'llava' \(LlavaForConditionalGeneration\) is not supported; .*clip",
            ),
        ],
    )
    def test_encoder(self, make, error, message):
        with pytest.raises(error, match=message):
            VisionZipEncoder(make(), K, M)
        with pytest.raises(error, match=message):
            VisionZipDualEncoder(make(), nn.Identity(), K, M)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"dominant": 0}, ValueError, "dominant must be at least 1, got 0"),
            ({"dominant": 2.0}, TypeError, "dominant must be an int, got 2.0 of type float"),
            ({"early_exit": 0}, TypeError, "early_exit must be True or False, got 0 of type int"),
            ({"contextual": -1}, ValueError, "contextual must be at least 0, got -1"),
            ({"merge": "sum"}, ValueError, 'merge must be "residual" or "mean", got \'sum\''),
            (
                {"dominant": 16},
                ValueError,
                "dominant=16 and contextual=2 ask for 18 tokens of an image, but CLIPVisionModel makes 17; lower them",
            ),
            ({"layer": 5}, ValueError, "=5 is out of range for a vision tower of 4 layers; expected -4..-1 or 1..4"),
            ({"layer": 0}, ValueError, "=0 names the patch embeddings"),
            ({"layer": []}, ValueError, "is empty; expected a layer or several"),
        ],
    )
    def test_arguments(self, clip, arguments, error, message):
        before = snapshots.instances(clip)
        with pytest.raises(error, match=message):
            VisionZipEncoder(clip, **({"dominant": K, "contextual": M} | arguments))
        assert snapshots.instances(clip) == before

    def test_budget_of_an_encoder_without_cls_or_with_registers(self):
        for kind in ("siglip", "dinov2_with_registers"):
            encoder, most = tiny_encoders.encoder(kind), tokens_of(kind, PATCHES)
            VisionZipEncoder(encoder, most, 0)
            with pytest.raises(ValueError, match=f"makes {most}; lower them so that dominant \\+ contextual <= {most}"):
                VisionZipEncoder(encoder, most, 1)

    @pytest.mark.parametrize("owner", ["encoder", "model"])
    def test_wrapped_or_compressed_already(self, rng, owner):
        model = tiny.llava()
        encoder = model.model.vision_tower
        first = VisionZipEncoder(encoder, K, M) if owner == "encoder" else compress(model, dominant=K, contextual=M)
        with pytest.raises(
            ValueError, match=r"compressed already, or wrapped .*call visionzip_ext.restore .* detach\(\)"
        ):
            VisionZipEncoder(encoder, K, M)
        if owner == "encoder":
            with pytest.raises(ValueError, match="compressed already, or wrapped"):
                compress(model, dominant=K, contextual=M)
            assert first(pixels(rng)).tokens.shape == (2, K + M, CHANNELS)
            first.detach()
        else:
            assert tiny.features(model, pixels(rng)).shape[1] == K + M
            restore(model)
        assert VisionZipEncoder(encoder, K, M)(pixels(rng)).tokens.shape == (2, K + M, CHANNELS)

    def test_attention_replaced_since(self, clip, rng):
        wrapped = VisionZipEncoder(clip, K, M)
        layer = layers_of(clip)[-2]
        layer.self_attn = copy.deepcopy(layers_of(clip)[0].self_attn)
        with pytest.raises(RuntimeError, match="was recorded 0 times in one forward, expected once"):
            wrapped(pixels(rng))

    def test_encoder_replaced_since(self, clip, rng):
        wrapped = VisionZipEncoder(clip, K, M)
        wrapped.encoder = copy_of(clip)
        with pytest.raises(RuntimeError, match=r"was replaced after compress; .* make a new VisionZipEncoder"):
            wrapped(pixels(rng))


WINDOW = 3  # cells along a window's side
FINE_CHANNELS = 12


class FineEncoder(nn.Module):
    """A ConvNeXt's last feature map, scaled up so that each low-resolution patch has a window of WINDOW x WINDOW."""

    def __init__(self):
        super().__init__()
        config = transformers.ConvNextConfig(
            num_channels=3, patch_size=4, hidden_sizes=[8, FINE_CHANNELS], depths=[1, 1], num_stages=2
        )
        self.convnext = transformers.ConvNextModel(config)

    def forward(self, pixel_values: Tensor) -> Tensor:
        side = WINDOW * IMAGE_SIZE // PATCH
        feature_map = self.convnext(pixel_values).last_hidden_state
        return nn.functional.interpolate(feature_map, size=(side, side), mode="bilinear")


class PatchInfoMining(nn.Module):
    """Mini-Gemini's: each low-resolution token asks the cells of its own window, and what they answer is added."""

    def __init__(self):
        super().__init__()
        self.query = nn.Sequential(nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, 16))
        self.key = nn.Sequential(nn.LayerNorm(FINE_CHANNELS), nn.Linear(FINE_CHANNELS, 16))
        self.value = nn.Sequential(nn.LayerNorm(FINE_CHANNELS), nn.Linear(FINE_CHANNELS, CHANNELS))
        self.projector = nn.Linear(CHANNELS, 20)

    def forward(self, tokens: Tensor, windows: Tensor) -> Tensor:
        """(B, n, C), (B, n, cells, C2) -> (B, n, 20)."""
        logits = self.query(tokens).unsqueeze(2) @ self.key(windows).transpose(2, 3) / 16**0.5
        return self.projector(tokens + (logits.softmax(-1) @ self.value(windows)).squeeze(2))


def windows_one_by_one(feature_map: Tensor) -> Tensor:
    """(B, patches, cells, C2), cut out with plain loops."""
    side = IMAGE_SIZE // PATCH
    return torch.stack(
        [
            feature_map[:, :, y * WINDOW : (y + 1) * WINDOW, x * WINDOW : (x + 1) * WINDOW].flatten(2).transpose(1, 2)
            for y in range(side)
            for x in range(side)
        ],
        1,
    )


@pytest.mark.parametrize("kind", ["clip", "siglip"])
class TestDualEncoder:
    @pytest.fixture
    def fine(self) -> nn.Module:
        return FineEncoder().eval()

    @torch.no_grad()
    def test_with_all_patches_it_is_mini_gemini(self, encoder, fine, rng):
        mining = PatchInfoMining()
        images, large = pixels(rng), pixels(rng, 2, 128, 128)
        patches = hidden_states(encoder, images)[-2][:, -PATCHES:]
        expected = mining(patches, windows_one_by_one(fine(large)))
        pairs = VisionZipDualEncoder(encoder, fine, PATCHES, 0)(images, large)
        assert torch.equal(pairs.windows, windows_one_by_one(fine(large)))
        torch.testing.assert_close(mining(pairs.tokens, pairs.windows), expected, rtol=0, atol=0)

    @pytest.mark.parametrize("merge", ["residual", "mean"])
    @torch.no_grad()
    def test_windows_follow_their_tokens(self, encoder, kind, fine, rng, merge):
        images, large = pixels(rng), pixels(rng, 2, 128, 128)
        pairs = VisionZipDualEncoder(encoder, fine, K, M, merge=merge)(images, large)
        assert pairs.tokens.shape == (2, K + M, CHANNELS)
        assert pairs.windows.shape == (2, K + M, WINDOW**2, FINE_CHANNELS)
        offset = int(kind != "siglip")
        patches, windows = hidden_states(encoder, images)[-2], windows_one_by_one(fine(large))
        for image in range(2):
            kept = [int(token) for token in pairs.decision.indices[image]][offset:]
            assert len(kept) == K
            joined = [[] for _ in range(M)]
            for token, row in enumerate(pairs.decision.assignment[image].tolist()):
                if row >= K + offset:
                    joined[row - K - offset].append(token)
            rest = sorted(token for tokens in joined for token in tokens)
            targets = rest[:: max(1, len(rest) // M)][:M]

            def merged(features: Tensor, first: int, target: int, tokens: list[int]) -> Tensor:
                others = [features[token - first] for token in tokens if token != target]
                if merge == "mean":
                    return torch.stack([features[target - first], *others]).mean(0)
                return features[target - first] + (torch.stack(others).mean(0) if others else 0)

            for features, first, got in (
                (patches[image], 0, pairs.tokens[image]),
                (windows[image], offset, pairs.windows[image]),
            ):
                rows = [features[token - first] for token in kept]
                rows += [merged(features, first, t, tokens) for t, tokens in zip(targets, joined, strict=True)]
                torch.testing.assert_close(got, torch.stack(rows), rtol=1e-5, atol=1e-5)

    @torch.no_grad()
    def test_the_decision_is_the_first_encoders(self, encoder, kind, fine, rng):
        images = pixels(rng)
        pairs = VisionZipDualEncoder(encoder, fine, K, M)(images, pixels(rng, 2, 128, 128))
        pairs_of_others = VisionZipDualEncoder(copy_of(encoder), fine, K, M)(images, pixels(rng, 2, 128, 128))
        alone = VisionZipEncoder(copy_of(encoder), K + (kind != "siglip"), M)(images)
        assert torch.equal(pairs.decision.assignment, alone.decision.assignment)
        assert torch.equal(pairs.tokens, alone.tokens[:, int(kind != "siglip") :])
        assert torch.equal(pairs_of_others.decision.assignment, alone.decision.assignment)
        assert not torch.equal(pairs.windows, pairs_of_others.windows)

    def test_gradients_reach_both(self, encoder, fine, rng):
        pairs = VisionZipDualEncoder(encoder, fine, K, M)(pixels(rng), pixels(rng, 2, 128, 128))
        PatchInfoMining()(pairs.tokens, pairs.windows).square().sum().backward()
        assert layers_of(encoder)[0].mlp.fc1.weight.grad.abs().sum() > 0
        assert next(fine.parameters()).grad.abs().sum() > 0

    @pytest.mark.parametrize("shape", [(2, 5, 12, 13), (2, 5, 11, 12), (2, 12, 12)])
    def test_a_feature_map_off_the_grid(self, encoder, rng, shape):
        dual = VisionZipDualEncoder(encoder, nn.Identity(), K, M)
        with pytest.raises(ValueError, match=r"feature map has shape \(2, .*rows a multiple of 4 and columns of 4"):
            dual(pixels(rng), torch.zeros(shape))

    def test_other_images_than_the_first_encoders(self, encoder, rng):
        dual = VisionZipDualEncoder(encoder, nn.Identity(), K, M)
        with pytest.raises(RuntimeError, match="assignment"):
            dual(pixels(rng), torch.zeros(3, 5, 12, 12))

    def test_the_budget_is_of_patches(self, encoder):
        VisionZipDualEncoder(copy_of(encoder), nn.Identity(), PATCHES, 0)
        with pytest.raises(ValueError, match=r"dominant=16 and contextual=1 ask for 17 tokens .* makes 16"):
            VisionZipDualEncoder(encoder, nn.Identity(), PATCHES, 1)
        with pytest.raises(ValueError, match="dominant must be at least 1, got 0"):
            VisionZipDualEncoder(encoder, nn.Identity(), 0, M)
        with pytest.raises(TypeError, match=r"dominant must be an int, got 2\.5 of type float"):
            VisionZipDualEncoder(encoder, nn.Identity(), 2.5, M)


def copy_of(encoder: nn.Module) -> nn.Module:
    """An equal encoder, unwrapped."""
    twin = type(encoder)(encoder.config).eval()
    twin.load_state_dict(encoder.state_dict())
    return twin
