"""Configs and processors of the families that make a token of a square of patches, or of each."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from support import tiny_models as tiny
from support.tiny_models import IMAGE_SIZE, IMAGE_TOKEN, PATCH, PATCHES
from transformers import BatchFeature

TILE = 2 * IMAGE_SIZE
"""Pixels along a side where a token has 2 x 2 patches."""

try:
    from transformers.models.smolvlm import processing_smolvlm
except ImportError:
    HAS_SMOLVLM = False
else:
    HAS_SMOLVLM = True
"""Transformers 4 and the first of 5 import its processor with torchvision alone."""

_SQUARE = {"height": TILE, "width": TILE}
_VIDEO_TOKEN = 98
_BEGIN, _END, _GLOBAL, _UTTERANCE = 100, 101, 102, 103
_PLACE = 104  # and the eight that follow


def _vision(model_type: str, name: str, **changes: Any) -> Any:
    module = importlib.import_module(f"transformers.models.{model_type}.configuration_{model_type}")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": tiny.LAYERS, "num_attention_heads": 4}
    return getattr(module, name)(**(sizes | {"image_size": TILE, "patch_size": PATCH} | changes))


def _text(name: str, **changes: Any) -> Any:
    sizes = tiny.text_config().to_dict()
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    ids = ("num_key_value_heads", "pad_token_id", "bos_token_id", "eos_token_id")
    return getattr(transformers, name)(**({key: sizes[key] for key in (*kept, *ids)} | changes))


def paligemma_config(text: str = "GemmaConfig") -> Any:
    return transformers.PaliGemmaConfig(
        vision_config=tiny.vision_config("siglip").to_dict() | {"projection_dim": 48},
        text_config=_text(text, head_dim=12).to_dict(),
        image_token_index=IMAGE_TOKEN,
        projection_dim=48,
        hidden_size=48,
    )


def gemma3_config() -> Any:
    return transformers.Gemma3Config(
        vision_config=tiny.vision_config("siglip", image_size=TILE).to_dict(),
        text_config=_text("Gemma3TextConfig", head_dim=12, query_pre_attn_scalar=12, sliding_window=512),
        mm_tokens_per_image=PATCHES,
        image_token_index=IMAGE_TOKEN,
        boi_token_index=_BEGIN,
        eoi_token_index=_END,
    )


def internvl_config() -> Any:
    vision = _vision("internvl", "InternVLVisionConfig", image_size=[TILE, TILE], patch_size=[PATCH, PATCH])
    return transformers.InternVLConfig(
        vision_config=vision, text_config=_text("Qwen2Config"), image_token_id=IMAGE_TOKEN
    )


def idefics3_config(family: str = "Idefics3") -> Any:
    vision = _vision(family.lower(), f"{family}VisionConfig")
    return getattr(transformers, f"{family}Config")(
        vision_config=vision.to_dict(),
        text_config=tiny.text_config(),
        image_token_id=IMAGE_TOKEN,
        scale_factor=2,
        pad_token_id=0,
    )


class _Unchecked:
    """Goes before a processor's class: any tokenizer and video processor will do."""

    def check_argument_for_proper_class(self, *arguments: Any) -> None:
        """Take it."""


class PaliGemmaProcessor(_Unchecked, transformers.PaliGemmaProcessor):
    pass


class Gemma3Processor(_Unchecked, transformers.Gemma3Processor):
    pass


class InternVLProcessor(_Unchecked, transformers.InternVLProcessor):
    pass


class Idefics3Processor(_Unchecked, transformers.Idefics3Processor):
    pass


if HAS_SMOLVLM:
    # Writes the number of a video's frames in words; a package that nothing else here needs.
    processing_smolvlm.num2words = processing_smolvlm.num2words or str

    class SmolVLMProcessor(_Unchecked, transformers.SmolVLMProcessor):
        pass


class FramesProcessor:
    """Stands in for the library's video processors, which need torchvision: every frame, resized.

    Attributes:
        name: of the pixel values, which differs between families.
    """

    num_frames, fps = 3, 1

    def __init__(self, name: str) -> None:
        self.name = name
        self.model_input_names = (name,)

    def __call__(self, videos: list, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        videos = [video[0] if isinstance(video, list) else video for video in videos]
        frames = torch.stack([torch.as_tensor(np.stack(video)).permute(0, 3, 1, 2).float() for video in videos])
        pixels = torch.nn.functional.interpolate(frames.flatten(0, 1), size=(TILE, TILE)) / 127.5 - 1
        result = BatchFeature({self.name: pixels.unflatten(0, frames.shape[:2])})
        if self.name == "pixel_values":  # SmolVLM's
            seconds = list(range(frames.shape[1]))
            metadata = SimpleNamespace(fps=1, timestamps=seconds, duration=len(seconds))
            result["video_metadata"] = [metadata] * len(videos)
        return result


def paligemma() -> Any:
    image_processor = tiny.image_processor_class("siglip", "SiglipImageProcessor")(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    image_processor.image_seq_length = PATCHES
    return PaliGemmaProcessor(
        image_processor=image_processor, tokenizer=tiny.tokenizer(), chat_template=tiny.CHAT_TEMPLATE
    )


def gemma3() -> Any:
    named = {"boi_token": ("<image>", _BEGIN), "eoi_token": ("<end>", _END), "image_token": ("<soft>", IMAGE_TOKEN)}
    return Gemma3Processor(
        image_processor=tiny.image_processor_class("gemma3", "Gemma3ImageProcessor")(size=_SQUARE),
        tokenizer=tiny.tokenizer(named=named),
        image_seq_length=PATCHES,
        chat_template=tiny.CHAT_TEMPLATE,
    )


def internvl() -> Any:
    named = {
        "start_image_token": ("<begin>", _BEGIN),
        "end_image_token": ("<end>", _END),
        "context_image_token": ("<image>", IMAGE_TOKEN),
        "video_token": ("<video>", _VIDEO_TOKEN),
    }
    image_processor = tiny.image_processor_class("got_ocr2", "GotOcr2ImageProcessor")
    return InternVLProcessor(
        video_processor=FramesProcessor("pixel_values_videos"),
        image_processor=image_processor(size=_SQUARE, max_patches=4),
        tokenizer=tiny.tokenizer(named=named),
        image_seq_length=PATCHES,
        chat_template=tiny.CHAT_TEMPLATE,
    )


def _idefics3_parts(family: str) -> dict[str, Any]:
    places = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2, 3, 4)]
    named = {
        "image_token": ("<image>", IMAGE_TOKEN),
        "fake_image_token": ("<fake_token_around_image>", _BEGIN),
        "global_image_token": ("<global-img>", _GLOBAL),
        "end_of_utterance_token": ("<end_of_utterance>", _UTTERANCE),
        "video_token": ("<video>", _VIDEO_TOKEN),
        **{f"place_{i}_token": (place, _PLACE + i) for i, place in enumerate(places)},
    }
    sizes = {"size": {"longest_edge": 2 * TILE}, "max_image_size": {"longest_edge": TILE}}
    return {
        "image_processor": tiny.image_processor_class(family.lower(), f"{family}ImageProcessor")(**sizes),
        "tokenizer": tiny.tokenizer(named=named),
        "image_seq_len": PATCHES,
        "chat_template": tiny.CHAT_TEMPLATE,
    }


def idefics3() -> Any:
    return Idefics3Processor(**_idefics3_parts("Idefics3"))


def smolvlm() -> Any:
    return SmolVLMProcessor(video_processor=FramesProcessor("pixel_values"), **_idefics3_parts("SmolVLM"))
