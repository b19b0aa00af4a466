"""Tiny random LLaVA models and their processors, made from configs: nothing is downloaded.

The vision tower makes 4 x 4 patches and CLS; the tokenizer knows one token a word.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.utils import is_torchvision_available

IMAGE_TOKEN = 99
VOCABULARY = 128
LAYERS = 4
IMAGE_SIZE = 56
PATCH = 14
PATCHES = (IMAGE_SIZE // PATCH) ** 2

TRANSFORMERS = tuple(int(part) for part in transformers.__version__.split(".")[:2])

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
_WORDS = (*_SPECIAL, "USER", "ASSISTANT", ":", "what", "is", "this", "a", "cat", "dog", "the", "image", "shows")
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() }} : {% for c in m['content'] %}"
    "{% if c['type'] in ('image', 'video') %}<{{ c['type'] }}> {% else %}{{ c['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT : {% endif %}"
)


def vision_config(kind: str = "clip", **changes) -> CLIPVisionConfig | SiglipVisionConfig:
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
    }
    if kind == "siglip":
        return SiglipVisionConfig(**(sizes | {"vision_use_head": False} | changes))
    return CLIPVisionConfig(**(sizes | {"projection_dim": 32} | changes))


def text_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def llava_config(tower: str = "clip", **changes) -> LlavaConfig:
    return LlavaConfig(
        **({"vision_config": vision_config(tower), "text_config": text_config()} | changes),
        image_token_index=IMAGE_TOKEN,
    )


def llava(config: LlavaConfig | None = None, seed: int = 0) -> LlavaForConditionalGeneration:
    """A random LLaVA whose attention is far from uniform and whose answer depends on the image."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config if config is not None else llava_config()).eval()
    with torch.no_grad():
        for name, parameter in model.model.vision_tower.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.mul_(8)
        model.model.multi_modal_projector.linear_2.weight.mul_(30)
    model.generation_config.eos_token_id = None
    return model


def tokenizer(
    placeholders: Mapping[str, int] | None = None, named: dict[str, tuple[str, int]] | None = None
) -> PreTrainedTokenizerFast:
    """One token a word.

    Args:
        placeholders: special tokens and their ids; by default `<image>`.
        named: further special tokens and their ids, by the attributes under which processors look for them.
    """
    filler = (f"w{i}" for i in range(len(_WORDS), VOCABULARY))
    words = [*_WORDS, *filler]
    special = {**({"<image>": IMAGE_TOKEN} if placeholders is None else placeholders), **dict((named or {}).values())}
    for word, token in special.items():
        words[token] = word
    word_level = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    word_level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=word_level,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(special),
        **({"extra_special_tokens": {name: word for name, (word, _) in named.items()}} if named else {}),
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",
    )


def first_of(*candidates: tuple[str, str]) -> Any:
    """The first class there is, of (module, name): names differ between versions of transformers."""
    for module, name in candidates:
        try:
            return getattr(importlib.import_module(f"transformers.models.{module}"), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"none of {candidates} in transformers {transformers.__version__}")


def square(size: int = IMAGE_SIZE) -> dict[str, Any]:
    """An image processor's options for images of size x size pixels, cut out of larger ones."""
    return {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}


def image_processor_class(family: str, name: str) -> Any:
    """The library's on torchvision where there is one, as a user would have it, else that on Pillow."""
    folder = f"{family}.image_processing"
    on_torchvision = (f"{folder}_{family}_fast", f"{name}Fast") if TRANSFORMERS < (5,) else (f"{folder}_{family}", name)
    on_pillow = (f"{folder}_pil_{family}", f"{name}Pil"), (f"{folder}_{family}", name)
    return first_of(*([on_torchvision] if is_torchvision_available() else []), *on_pillow)


def image_processor(size: int = IMAGE_SIZE):
    """The CLIP image processor."""
    return image_processor_class("clip", "CLIPImageProcessor")(**square(size))


def processor(strategy: str = "default", has_cls: bool = True, size: int = IMAGE_SIZE, patch: int | None = PATCH):
    return LlavaProcessor(
        image_processor=image_processor(size),
        tokenizer=tokenizer(),
        patch_size=patch,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(has_cls),
        chat_template=CHAT_TEMPLATE,
    )


def loaded_processor(path: Path) -> LlavaProcessor:
    """What `save_pretrained` wrote."""
    on_pillow = TRANSFORMERS >= (5, 3) and not is_torchvision_available()
    return LlavaProcessor.from_pretrained(path, **({"backend": "pil"} if on_pillow else {}))


def images(count: int, seed: int = 0) -> list[Image.Image]:
    """Photograph-shaped noise, each image another size."""
    rng = np.random.default_rng(seed)
    shapes = [(60 + 10 * i, 80 + 4 * i, 3) for i in range(count)]
    return [Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)) for shape in shapes]


def pixels(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))


def prompt(*parts: int | list[int]) -> list[int]:
    """Token ids; an int stands for that many image placeholders."""
    return list(chain.from_iterable([IMAGE_TOKEN] * part if isinstance(part, int) else part for part in parts))


def padded(rows: list[list[int]], side: str = "left") -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` of a batch."""
    length = max(map(len, rows))
    left = side == "left"
    ids = [[0] * (length - len(row)) + row if left else row + [0] * (length - len(row)) for row in rows]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
    mask = mask if left else [row[::-1] for row in mask]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def features(model, pixel_values: torch.Tensor, **kwargs) -> torch.Tensor:
    """`get_image_features` as one tensor (images, tokens, channels), whatever this version returns."""
    result = model.get_image_features(pixel_values, **kwargs)
    return torch.stack(list(getattr(result, "pooler_output", result)))
