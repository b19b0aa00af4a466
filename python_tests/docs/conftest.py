"""What examples of the documentation find: checkpoints by their hub names, a photograph, a folder of their own."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from support import tiny_models as tiny
from support.tiny_original_llava import ClipTower, original_llava

import visionzip_ext

SIZE = 336  # the patches are as many as those of CLIP ViT-L/14-336, everything else is tiny
PINPOINTS = [[SIZE, 2 * SIZE], [2 * SIZE, SIZE], [2 * SIZE, 2 * SIZE]]


def _llava() -> transformers.LlavaForConditionalGeneration:
    return tiny.llava(tiny.llava_config(vision_config=tiny.vision_config(image_size=SIZE)))


def _llava_next() -> transformers.LlavaNextForConditionalGeneration:
    config = transformers.LlavaNextConfig(
        vision_config=tiny.vision_config(image_size=SIZE),
        text_config=tiny.text_config(),
        image_token_index=tiny.IMAGE_TOKEN,
        image_grid_pinpoints=PINPOINTS,
    )
    return transformers.LlavaNextForConditionalGeneration(config).eval()


def _llava_next_processor() -> transformers.LlavaNextProcessor:
    image_processor = tiny.image_processor_class("llava_next", "LlavaNextImageProcessor")
    return transformers.LlavaNextProcessor(
        image_processor=image_processor(image_grid_pinpoints=PINPOINTS, **tiny.square(SIZE)),
        tokenizer=tiny.tokenizer(),
        patch_size=tiny.PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tiny.CHAT_TEMPLATE,
    )


# Name on the hub -> what is loaded from there, by the class that `from_pretrained` is called on.
_CHECKPOINTS: dict[str, dict[str, Callable[[], Any]]] = {
    "llava-hf/llava-1.5-7b-hf": {
        "LlavaForConditionalGeneration": _llava,
        "AutoProcessor": lambda: tiny.processor(size=SIZE),
    },
    "llava-hf/llava-v1.6-vicuna-7b-hf": {
        "LlavaNextForConditionalGeneration": _llava_next,
        "AutoProcessor": _llava_next_processor,
    },
    "openai/clip-vit-large-patch14-336": {
        "CLIPVisionModel": lambda: transformers.CLIPVisionModel(tiny.vision_config(image_size=SIZE)).eval(),
    },
}


def _serve(monkeypatch: pytest.MonkeyPatch, class_name: str) -> None:
    """Let a class load tiny random models by the hub names of `_CHECKPOINTS`, and from folders what lies there."""
    cls = getattr(transformers, class_name)
    from_folder = cls.from_pretrained

    def from_pretrained(name: str, **options: Any) -> Any:
        if name in _CHECKPOINTS:
            return _CHECKPOINTS[name][class_name]()
        assert Path(name).is_dir(), f"{name} is neither a folder nor a checkpoint that examples are served"
        on_pillow = class_name == "AutoProcessor" and not transformers.utils.is_torchvision_available()
        return from_folder(name, **options, **({"backend": "pil"} if on_pillow else {}))

    monkeypatch.setattr(cls, "from_pretrained", from_pretrained)


@pytest.fixture
def namespace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Names that examples begin with; in a folder of their own, which holds photo.jpg."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tiny.images(1)[0].resize((640, 480)).save("photo.jpg")
    for class_name in sorted({name for checkpoint in _CHECKPOINTS.values() for name in checkpoint}):
        _serve(monkeypatch, class_name)
    return {"installed": lambda module: importlib.util.find_spec(module) is not None}


@pytest.fixture
def migrating_namespace(monkeypatch: pytest.MonkeyPatch, namespace: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """What somebody has who comes from the released package; in whose place ours is imported."""
    released = types.ModuleType("visionzip")
    released.visionzip = visionzip_ext.visionzip
    monkeypatch.setitem(sys.modules, "visionzip", released)

    def load_pretrained_model(model_path: str, model_base: str | None, model_name: str) -> tuple:
        return None, original_llava(ClipTower(SIZE)), None, 2048

    return namespace | {
        "AutoProcessor": transformers.AutoProcessor,
        "LlavaForConditionalGeneration": transformers.LlavaForConditionalGeneration,
        "load_pretrained_model": load_pretrained_model,
        "model": _llava(),
        "name": "llava-v1.5-7b",
        "path": str(tmp_path / "checkpoint"),
        "processor": tiny.processor(size=SIZE),
        "visionzip_ext": visionzip_ext,
    }
