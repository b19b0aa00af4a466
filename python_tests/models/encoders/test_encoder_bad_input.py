"""What VisionZipEncoder refuses, and in which words."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import transformers
from support import snapshots, tiny_encoders
from support import tiny_models as tiny
from support.tiny_encoders import (
    CHANNELS,
    Tower,
    copy_of,
    layers_of,
    pixels,
    tokens_of,
)
from support.tiny_models import IMAGE_SIZE, PATCH, PATCHES
from torch import nn

from visionzip_ext import VisionZipDualEncoder, VisionZipEncoder, compress, restore

K, M = 6, 2


class TestBadInput:
    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: nn.Linear(2, 2), TypeError, "encoder is a torch.nn.modules.linear.Linear; expected a CLIPVision"),
            (lambda: nn.Linear(2, 2), TypeError, r"for any other, .* call visionzip_ext\.zip_qk, as docs/any_vit\.md"),
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

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (
                lambda x: x[0],
                ValueError,
                r"shape \(3, 56, 56\); expected \(B, 3, .*; .* pass pixel_values\[None\]",
            ),
            (lambda x: x[:, :1], ValueError, r"shape \(2, 1, 56, 56\); expected \(B, 3, height, width\)$"),
            (lambda x: x.flatten(), ValueError, r"expected \(B, 3, height, width\)$"),
            (
                lambda x: x.numpy(),
                TypeError,
                r"pixel_values is a numpy.ndarray; expected a torch.Tensor \(B, 3, ",
            ),
            (list, TypeError, "pixel_values is a builtins.list; expected a torch.Tensor"),
        ],
    )
    def test_pixel_values(self, encoder, rng, change, error, message):
        wrapped, images = VisionZipEncoder(encoder, K, M), pixels(rng)
        with pytest.raises(error, match=message):
            wrapped(change(images))
        assert wrapped(images).tokens.shape == (2, K + M, CHANNELS)

    def test_an_image_smaller_than_the_encoders_own(self, rng):
        wrapped = VisionZipEncoder(tiny_encoders.encoder("dinov2"), K, M)
        with pytest.raises(ValueError, match="ask for 8 tokens of an image, but Dinov2Model makes 5; lower them"):
            wrapped(pixels(rng, 2, 2 * PATCH, 2 * PATCH))

    def test_float64(self, encoder):
        before = snapshots.instances(encoder.double())
        with pytest.raises(TypeError, match=r"Model has parameters of float64; .* take float32, .* call \.float\(\)"):
            VisionZipEncoder(encoder, K, M)
        assert snapshots.instances(encoder) == before
        VisionZipEncoder(encoder.float(), K, M)

    @pytest.mark.parametrize("name", ["CLIPModel", "SiglipModel", "SiglipForImageClassification"])
    def test_a_model_around_a_vision_model(self, rng, name):
        kind = "clip" if name == "CLIPModel" else "siglip"
        text = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
        config = transformers.CLIPConfig if kind == "clip" else transformers.SiglipConfig
        config = config(text_config=text, vision_config=tiny.vision_config(kind).to_dict())
        model = getattr(transformers, name)(config).eval()
        with pytest.raises(TypeError, match=rf"{name} is a larger model around its .*; pass that, \.vision_model$"):
            VisionZipEncoder(model, K, M)
        assert VisionZipEncoder(model.vision_model, K, M)(pixels(rng)).tokens.shape == (2, K + M, CHANNELS)

    def test_a_classifier(self, rng):
        sizes = {"hidden_size": CHANNELS, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = transformers.ViTConfig(**sizes, intermediate_size=64, image_size=IMAGE_SIZE, patch_size=PATCH)
        model = transformers.ViTForImageClassification(config).eval()
        with pytest.raises(TypeError, match=r"ViTForImageClassification is a larger model .* pass that, \.vit$"):
            VisionZipEncoder(model, K, M)
        assert VisionZipEncoder(model.vit, K, M)(pixels(rng)).tokens.shape == (2, K + M, CHANNELS)

    def test_timms_models(self):
        class TimmWrapperModel(nn.Module):
            """The library's own needs timm."""

            config = transformers.TimmWrapperConfig()

        with pytest.raises(TypeError, match=r"TimmWrapperModel computes attention inside timm.*zip_qk, as docs"):
            VisionZipEncoder(TimmWrapperModel(), K, M)

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
