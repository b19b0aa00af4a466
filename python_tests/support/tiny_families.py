"""Tiny random models of every supported family and their processors, made from configs: nothing is downloaded.

A tile has 4 x 4 tokens; images are cut into grids of 1 to 4 tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from support import tiny_grouped as grouped
from support import tiny_models as tiny
from support.tiny_models import IMAGE_SIZE, IMAGE_TOKEN, PATCH, PATCHES, vision_config
from transformers import BatchFeature, PreTrainedTokenizerFast
from transformers.utils import is_torchvision_available

VIDEO_TOKEN = 98
FRAMES = 3
PINPOINTS = [[IMAGE_SIZE, 2 * IMAGE_SIZE], [2 * IMAGE_SIZE, IMAGE_SIZE], [2 * IMAGE_SIZE, 2 * IMAGE_SIZE]]


@dataclass(frozen=True)
class Family:
    """How to make a family's tiny model and processor, and what is peculiar to it.

    Attributes:
        name: of the model's class, less "ForConditionalGeneration".
        has_cls: CLS is one of the tokens of a tile.
        tiled: it shows images in tiles, in an order that `layout` says.
        video: it takes videos, through a feature method of their own.
        newlines: placeholders that close a video.
        grouped: it makes a token of a square of patches, or of each; it is no LLaVA.
        tile_counts: tiles of each of `images`.
        towers: the names of its vision towers.
        language_model: of its language model.
        louder: the parameter that is made larger, so that the answer depends on the image.
        stand_in: its processor has one for a part that needs torchvision, and cannot be pickled or saved.
        image_budget: it can be compressed with budget_per="image".
        text_alone: its processor takes prompts without an image.
        nested: its processor takes the images of a batch by prompt.
    """

    name: str
    config: Callable[[], Any]
    has_cls: bool = True
    tiled: bool = False
    video: bool = False
    newlines: int = 0
    grouped: bool = False
    tile_counts: tuple[int, ...] = (1,)
    towers: tuple[str, ...] = ("vision_tower",)
    language_model: str = "language_model"
    louder: str = "multi_modal_projector.linear_2.weight"
    stand_in: bool = False
    image_budget: bool = True
    text_alone: bool = True
    nested: bool = False

    def __str__(self) -> str:
        return self.name

    def model(self, seed: int = 0) -> torch.nn.Module:
        """A random model whose attention is far from uniform and whose answer depends on the image."""
        torch.manual_seed(seed)
        model = getattr(transformers, f"{self.name}ForConditionalGeneration")(self.config()).eval()
        with torch.no_grad():
            for tower in self.towers:
                for name, parameter in getattr(model.model, tower).named_parameters():
                    if name.endswith(("q_proj.weight", "k_proj.weight")):
                        parameter.mul_(8)
            louder = model.model.get_parameter(self.louder)
            louder.mul_(30) if louder.any() else louder.normal_()  # Gemma 3's begins as zeros
        model.generation_config.eos_token_id = None
        model.generation_config.suppress_tokens = [IMAGE_TOKEN, VIDEO_TOKEN]  # a random model might write them
        return model

    def processor(self) -> transformers.ProcessorMixin:
        """The processor of the model."""
        return _PROCESSORS[self.name]()

    def images(self, count: int, seed: int = 0) -> list:
        """Images whose sizes differ, so that tiled families cut them into different grids; one for each prompt."""
        images = self.pictures(count, seed)
        return [[image] for image in images] if self.nested else images

    def pictures(self, count: int, seed: int = 0) -> list:
        """`images`, not by prompt."""
        return tiny.images(count, seed) if len(self.tile_counts) == 1 else _noise(count, seed)

    def tiles(self, number: int) -> int:
        """Of the number-th of `images`."""
        return self.tile_counts[number % len(self.tile_counts)]


def _noise(count: int, seed: int) -> list:
    rng = np.random.default_rng(seed)
    sizes = [(40, 150), (130, 60), (110, 100), (100, 60)]  # (height, width): grids 1 x 2, 2 x 1, 2 x 2, 2 x 1
    return [Image.fromarray(rng.integers(0, 255, (*sizes[i % 4], 3), dtype=np.uint8)) for i in range(count)]


def videos(count: int, seed: int = 0, frames: int = FRAMES) -> list[np.ndarray]:
    """(frames, height, width, 3) each."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 255, (frames, 64, 72, 3), dtype=np.uint8) for _ in range(count)]


def _tiled_config(class_name: str, tower: str = "clip", **changes: Any) -> Any:
    tokens = {"image_token_index": IMAGE_TOKEN, "image_grid_pinpoints": PINPOINTS}
    common = {"vision_config": vision_config(tower), "text_config": tiny.text_config()}
    return getattr(transformers, class_name)(**(common | tokens | changes))


def _vip_config() -> Any:
    layers = {"vision_feature_layers" if tiny.TRANSFORMERS < (5, 20) else "vision_feature_layer": [-2, 1, -3]}
    return transformers.VipLlavaConfig(
        vision_config=vision_config(), text_config=tiny.text_config(), image_token_index=IMAGE_TOKEN, **layers
    )


def _video_llava_config() -> Any:
    tokens = {"image_token_index": IMAGE_TOKEN, "video_token_index": VIDEO_TOKEN}
    return transformers.VideoLlavaConfig(vision_config=vision_config(), text_config=tiny.text_config(), **tokens)


_GRIDS = (3, 3, 5, 3)
_OF_GROUPED: dict[str, Any] = {"has_cls": False, "grouped": True}
_OF_IDEFICS = _OF_GROUPED | {
    "tile_counts": (3, 3, 5, 5),
    "towers": ("vision_model",),
    "language_model": "text_model",
    "louder": "connector.modality_projection.proj.weight",
    "image_budget": False,
}


def _smolvlm_config() -> Any:
    return grouped.idefics3_config("SmolVLM")


FAMILIES = (
    Family("Llava", tiny.llava_config),
    Family("VipLlava", _vip_config),
    Family("LlavaNext", lambda: _tiled_config("LlavaNextConfig"), tiled=True, tile_counts=_GRIDS),
    Family(
        "LlavaNextVideo",
        lambda: _tiled_config("LlavaNextVideoConfig", video_token_index=VIDEO_TOKEN, vision_feature_layer=-2),
        tiled=True,
        tile_counts=_GRIDS,
        video=True,
        stand_in=True,
    ),
    Family(
        "LlavaOnevision",
        lambda: _tiled_config("LlavaOnevisionConfig", "siglip", video_token_index=VIDEO_TOKEN),
        has_cls=False,
        tiled=True,
        tile_counts=_GRIDS,
        video=True,
        newlines=1,
        stand_in=True,
    ),
    Family("VideoLlava", _video_llava_config, video=True, towers=("image_tower", "video_tower"), stand_in=True),
    Family(
        "PaliGemma",
        grouped.paligemma_config,
        **_OF_GROUPED,
        louder="multi_modal_projector.linear.weight",
        text_alone=False,
    ),
    Family(
        "Gemma3",
        grouped.gemma3_config,
        **_OF_GROUPED,
        louder="multi_modal_projector.mm_input_projection_weight",
        image_budget=False,
        nested=True,
    ),
    Family(
        "InternVL", grouped.internvl_config, **_OF_GROUPED, tile_counts=(5, 3, 1, 3), stand_in=True, image_budget=False
    ),
    Family("Idefics3", grouped.idefics3_config, **_OF_IDEFICS),
    *([Family("SmolVLM", _smolvlm_config, **_OF_IDEFICS, stand_in=True, nested=True)] if grouped.HAS_SMOLVLM else []),
)


def tokenizer() -> PreTrainedTokenizerFast:
    """`tiny_models.tokenizer`, with a video token."""
    return tiny.tokenizer({"<image>": IMAGE_TOKEN, "<video>": VIDEO_TOKEN})


class VideoProcessor:
    """Stands in for the library's where there is no torchvision: frames are resized, every one is taken."""

    model_input_names = ("pixel_values_videos",)

    def __call__(self, videos: list, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        resized = torch.stack([torch.as_tensor(np.stack(video)).permute(0, 3, 1, 2).float() for video in videos])
        size = (IMAGE_SIZE, IMAGE_SIZE)
        pixels = torch.nn.functional.interpolate(resized.flatten(0, 1), size=size).unflatten(0, resized.shape[:2])
        return BatchFeature({"pixel_values_videos": pixels / 127.5 - 1}, tensor_type=return_tensors)


def _with_video(name: str, size: dict[str, Any], **options: Any) -> Any:
    """The processor of that name, with the library's video processor where torchvision is installed."""
    cls = getattr(transformers, f"{name}Processor")
    on_torchvision = is_torchvision_available()
    video_processor = getattr(transformers, f"{name}VideoProcessor")(**size) if on_torchvision else VideoProcessor()
    # Any video processor will do, and any tokenizer.
    unchecked = {"check_argument_for_proper_class": lambda *arguments: None}
    return type(cls.__name__, (cls,), unchecked)(video_processor=video_processor, **options)


def _tiled_image_processor(family: str, **options: Any) -> Any:
    name = "".join(part.capitalize() for part in family.split("_")) + "ImageProcessor"
    return tiny.image_processor_class(family, name)(image_grid_pinpoints=PINPOINTS, **options)


# Arguments of processors whose model has a CLIP.
_OF_CLIP = {
    "patch_size": PATCH,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
    "chat_template": tiny.CHAT_TEMPLATE,
}


def _llava_next() -> Any:
    return transformers.LlavaNextProcessor(
        image_processor=_tiled_image_processor("llava_next", **tiny.square()),
        tokenizer=tiny.tokenizer(),
        **_OF_CLIP,
    )


def _llava_next_video() -> Any:
    return _with_video(
        "LlavaNextVideo",
        tiny.square(),
        image_processor=_tiled_image_processor("llava_next", **tiny.square()),
        tokenizer=tokenizer(),
        **_OF_CLIP,
    )


def _llava_onevision() -> Any:
    size = {"size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}}
    return _with_video(
        "LlavaOnevision",
        size,
        image_processor=_tiled_image_processor("llava_onevision", **size),
        tokenizer=tokenizer(),
        num_image_tokens=PATCHES,
        vision_feature_select_strategy="full",
        chat_template=tiny.CHAT_TEMPLATE,
    )


def _video_llava() -> Any:
    return _with_video(
        "VideoLlava",
        tiny.square(),
        image_processor=tiny.image_processor_class("video_llava", "VideoLlavaImageProcessor")(**tiny.square()),
        tokenizer=tokenizer(),
        **_OF_CLIP,
    )


_PROCESSORS = {
    "Llava": tiny.processor,
    "VipLlava": tiny.processor,
    "LlavaNext": _llava_next,
    "LlavaNextVideo": _llava_next_video,
    "LlavaOnevision": _llava_onevision,
    "VideoLlava": _video_llava,
    "PaliGemma": grouped.paligemma,
    "Gemma3": grouped.gemma3,
    "InternVL": grouped.internvl,
    "Idefics3": grouped.idefics3,
    "SmolVLM": grouped.smolvlm,
}
