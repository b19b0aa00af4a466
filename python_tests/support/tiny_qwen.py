"""Tiny random models of the Qwen-VL families and their processors, made from configs: nothing is downloaded.

A prompt of a test names an image `<image>`, as for every family; the processor puts the words around it that these
models know an image by.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from support import tiny_models as tiny
from support.tiny_families import VIDEO_TOKEN, Family
from support.tiny_models import IMAGE_TOKEN, TRANSFORMERS
from transformers import BatchFeature, FeatureExtractionMixin

VISION_START, VISION_END = 122, 123
SIZES = [(112, 112), (64, 256), (200, 96), (128, 128)]
"""(height, width) of images: of at least 16 tokens, the first of 4 x 4."""
_NAMED = {
    "image_token": ("<image>", IMAGE_TOKEN),
    "video_token": ("<video>", VIDEO_TOKEN),
    "vision_start_token": ("<|vision_start|>", VISION_START),
    "vision_end_token": ("<|vision_end|>", VISION_END),
}


@dataclass(frozen=True)
class QwenFamily(Family):
    """How to make a family's tiny model and processor.

    Attributes:
        patch: pixels along a side of a patch.
        deepstack: features of earlier layers go to the language model too.
        seconds: the processor tells how much time lies between the temporal patches of a video.
    """

    any_size: bool = True
    has_cls: bool = False
    towers: tuple[str, ...] = ("visual",)
    louder: str = "visual.merger"
    stand_in: bool = True
    patch: int = 14
    deepstack: bool = False
    seconds: bool = False

    def model(self, seed: int = 0) -> Any:
        """A random model whose attention is far from uniform and whose answer depends on image and positions."""
        torch.manual_seed(seed)
        model = getattr(transformers, f"{self.name}ForConditionalGeneration")(self.config()).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "visual" in name and "qkv.weight" in name:
                    parameter.mul_(8)
                if "visual" in name and "merger" in name and parameter.ndim == 2:
                    parameter.mul_(15)
                if "language_model" in name and ("q_proj.weight" in name or "k_proj.weight" in name):
                    parameter.mul_(12)
                if "embed_tokens" in name or "lm_head" in name:
                    parameter.mul_(20)
        model.generation_config.eos_token_id = None
        # a random model might write them
        model.generation_config.suppress_tokens = [token for _, token in _NAMED.values()]
        return model

    def processor(self) -> Any:
        """The processor of the model; its video processor is a stand-in that takes every frame as it is."""
        size = {"shortest_edge": 56 * 56, "longest_edge": 256 * 256}
        images = tiny.image_processor_class("qwen2_vl", "Qwen2VLImageProcessor")(size=size, patch_size=self.patch)
        return self.processor_of(images, tiny.tokenizer(named=_NAMED))

    def loaded_processor(self, path: Path) -> Any:
        """See `Family.loaded_processor`; of its parts, as the library looks for a video processor of its own."""
        stock = self.processor()
        return self.processor_of(
            *(type(part).from_pretrained(path) for part in (stock.image_processor, stock.tokenizer))
        )

    def processor_of(self, image_processor: Any, tokenizer: Any) -> Any:
        """The processor that has these parts."""
        return _PROCESSORS[self.name](
            image_processor=image_processor,
            tokenizer=tokenizer,
            video_processor=VideoProcessor(self.patch),
            chat_template=tiny.CHAT_TEMPLATE,
        )

    def pictures(self, count: int, seed: int = 0) -> list[Image.Image]:
        """See `Family.pictures`."""
        return images(count, seed)


def config(name: str) -> Any:
    """Of the family of that name."""
    newest = name.startswith("Qwen3")
    rope = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0}
    if newest:
        rope["mrope_interleaved"] = True
    text = {
        "vocab_size": 128,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rope_parameters" if TRANSFORMERS >= (5, 0) else "rope_scaling": rope,
    }
    if name.endswith("Moe"):
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    vision = {"depth": 4, "num_heads": 2, "patch_size": 16 if newest else 14}
    if name == "Qwen2VL":
        vision |= {"embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 48}
    if name == "Qwen2_5_VL":
        vision |= {"window_size": 56, "fullatt_block_indexes": [1, 3]}
    if newest:
        vision |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
    tokens = {"image_token_id": IMAGE_TOKEN, "video_token_id": VIDEO_TOKEN}
    tokens |= {"vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END}
    return getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision, **tokens)


class _Asked:
    """Goes before a processor's class: any parts will do, and an image or video gets its words around it."""

    def check_argument_for_proper_class(self, *arguments: Any) -> None:
        """Take it."""

    def __call__(self, *, text: Any = None, **kwargs: Any) -> BatchFeature:
        """As the processor, of a text that names images and videos alone."""
        if text is not None:
            texts = [text] if isinstance(text, str) else text
            text = [re.sub("<(image|video)>", r"<|vision_start|><\1><|vision_end|>", one) for one in texts]
        return super().__call__(text=text, **kwargs)  # type: ignore[misc]


class Qwen2VLProcessor(_Asked, transformers.Qwen2VLProcessor):
    pass


class Qwen2_5_VLProcessor(_Asked, transformers.Qwen2_5_VLProcessor):
    pass


class Qwen3VLProcessor(_Asked, transformers.Qwen3VLProcessor):
    pass


_PROCESSORS: dict[str, Callable[..., Any]] = {
    "Qwen2VL": Qwen2VLProcessor,
    "Qwen2_5_VL": Qwen2_5_VLProcessor,
    "Qwen3VL": Qwen3VLProcessor,
    "Qwen3VLMoe": Qwen3VLProcessor,
}


class VideoProcessor(FeatureExtractionMixin):
    """Stands in for the library's, which needs torchvision: frames are cut into patches as they are, two at a time."""

    model_input_names = ("pixel_values_videos", "video_grid_thw")
    merge_size = temporal_patch_size = 2

    def __init__(self, patch: int):
        super().__init__()
        self.patch = patch

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: it would go where the image processor is."""

    def __call__(self, videos: list, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        patches, grids = zip(*map(self._patches, videos), strict=True)
        frames = [list(range(len(video))) for video in videos]
        metadata = [SimpleNamespace(fps=2.0, sampled_fps=2.0, frames_indices=indices) for indices in frames]
        values = {"pixel_values_videos": torch.cat(patches), "video_grid_thw": torch.stack(grids)}
        return BatchFeature(values | ({"video_metadata": metadata} if kwargs.get("return_metadata") else {}))

    def _patches(self, video: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.as_tensor(video).float() / 127.5 - 1
        t, rows, columns = len(x) // 2, x.shape[1] // self.patch, x.shape[2] // self.patch
        x = x.view(t, 2, rows // 2, 2, self.patch, columns // 2, 2, self.patch, 3)
        return x.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(t * rows * columns, -1), torch.tensor([t, rows, columns])


_NEWEST: dict[str, Any] = {"patch": 16, "deepstack": True}
FAMILIES = (
    QwenFamily("Qwen2VL", partial(config, "Qwen2VL")),
    QwenFamily("Qwen2_5_VL", partial(config, "Qwen2_5_VL"), seconds=True),
    QwenFamily("Qwen3VL", partial(config, "Qwen3VL"), **_NEWEST),
    QwenFamily("Qwen3VLMoe", partial(config, "Qwen3VLMoe"), **_NEWEST),
)


def images(count: int, seed: int = 0) -> list[Image.Image]:
    """Noise, of sizes that differ."""
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 255, (*SIZES[i % len(SIZES)], 3), dtype=np.uint8)) for i in range(count)]


def videos(family: QwenFamily, count: int, seed: int = 0) -> list[np.ndarray]:
    """Of 6 frames and of 4, each of 4 x 8 or 8 x 4 patches."""
    rng = np.random.default_rng(seed)
    sides = (8 * family.patch, 4 * family.patch)
    shapes = [(6 - 2 * (i % 2), *(sides if i % 2 else sides[::-1]), 3) for i in range(count)]
    return [rng.integers(0, 255, shape, dtype=np.uint8) for shape in shapes]
