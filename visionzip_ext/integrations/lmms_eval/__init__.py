"""Compressed models for lmms-eval 0.7, under names of their own: the entry point `lmms_eval.models`.

`lmms-eval --model visionzip_llava_hf --model_args pretrained=...,dominant=54,contextual=10`; docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

_CLASSES = {
    "visionzip_llava_hf": "VisionZipLlavaHf",
    "visionzip_llava_onevision": "VisionZipLlavaOnevision",
    "visionzip_qwen2_5_vl": "VisionZipQwen2_5_VL",
}


def manifests() -> Sequence[ModelManifest]:
    """What lmms-eval's registry asks for; it imports a class only where its name is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    module = f"{__name__}.models"
    return [ModelManifest(name, chat_class_path=f"{module}.{own}") for name, own in _CLASSES.items()]
