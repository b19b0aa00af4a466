"""Tiny random models of the Qwen-VL families and their processors, made from configs: nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from support import tiny_models as tiny
from support.tiny_models import TRANSFORMERS
from transformers import BatchFeature

IMAGE_TOKEN, VIDEO_TOKEN, VISION_START, VISION_END = 120, 121, 122, 123
IMAGE = "<|vision_start|> <|image_pad|> <|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
SIZES = [(112, 160), (200, 96), (64, 64), (128, 128)]
_SPECIAL = {
    "<|image_pad|>": IMAGE_TOKEN,
    "<|video_pad|>": VIDEO_TOKEN,
    "<|vision_start|>": VISION_START,
    "<|vision_end|>": VISION_END,
}
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() }} : {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|> {% else %}{{ c['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT : {% endif %}"
)


@dataclass(frozen=True)
class QwenFamily:
    """How to make a family's tiny model and processor.

    Attributes:
        name: of the model's class, less "ForConditionalGeneration".
        patch: pixels along a side of a patch.
        deepstack: features of earlier layers go to the language model too.
        seconds: the processor tells how much time lies between the temporal patches of a video.
    """

    name: str
    patch: int = 14
    deepstack: bool = False
    seconds: bool = False

    def __str__(self) -> str:
        return self.name

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
        model.generation_config.suppress_tokens = list(_SPECIAL.values())  # a random model might write them
        return model

    def config(self) -> Any:
        rope = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0}
        if self.deepstack:
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
        if self.name.endswith("Moe"):
            text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        vision = {"depth": 4, "num_heads": 2, "patch_size": self.patch}
        if self.name == "Qwen2VL":
            vision |= {"embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2}
        else:
            vision |= {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 48}
        if self.name == "Qwen2_5_VL":
            vision |= {"window_size": 56, "fullatt_block_indexes": [1, 3]}
        if self.deepstack:
            vision |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
        tokens = {"image_token_id": IMAGE_TOKEN, "video_token_id": VIDEO_TOKEN}
        tokens |= {"vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END}
        return getattr(transformers, f"{self.name}Config")(text_config=text, vision_config=vision, **tokens)

    def processor(self) -> Any:
        """The processor of the model; its video processor is a stand-in that takes every frame as it is."""
        name = "Qwen3VLProcessor" if self.deepstack else f"{self.name}Processor"
        cls = getattr(transformers, name)
        size = {"shortest_edge": 56 * 56, "longest_edge": 256 * 256}
        images = tiny.image_processor_class("qwen2_vl", "Qwen2VLImageProcessor")(size=size, patch_size=self.patch)
        unchecked = {"check_argument_for_proper_class": lambda *arguments: None}
        return type(name, (cls,), unchecked)(
            image_processor=images,
            tokenizer=tiny.tokenizer(_SPECIAL),
            video_processor=VideoProcessor(self.patch),
            chat_template=CHAT_TEMPLATE,
        )


class VideoProcessor:
    """Stands in for the library's, which needs torchvision: frames are cut into patches as they are, two at a time."""

    model_input_names = ("pixel_values_videos", "video_grid_thw")
    merge_size = temporal_patch_size = 2

    def __init__(self, patch: int):
        self.patch = patch

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


FAMILIES = (
    QwenFamily("Qwen2VL"),
    QwenFamily("Qwen2_5_VL", seconds=True),
    QwenFamily("Qwen3VL", patch=16, deepstack=True),
    QwenFamily("Qwen3VLMoe", patch=16, deepstack=True),
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
