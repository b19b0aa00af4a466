"""The released package's one call, for those who migrate."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from visionzip_ext.integrations.transformers.api import compress
from visionzip_ext.integrations.transformers.original_llava import compress_original, is_original_llava

Model = TypeVar("Model", bound=nn.Module)


def visionzip(model: Model, dominant: int = 191, contextual: int = 30) -> Model:
    """Compress a model as the released package's `visionzip` does, with the same signature and defaults.

    For models of the original LLaVA repositories (`load_pretrained_model`), whose vision tower then returns dominant +
    contextual features of an image, and for models of transformers, for which it is `compress` without a processor.
    Other than there, no class is patched, and `restore` undoes it.

    Args:
        model: the model; changed in place.
        dominant: tokens kept as they are, CLS among them.
        contextual: tokens that all others are merged into.

    Returns:
        The same model.

    Raises:
        TypeError, ValueError: as `compress`.
        ValueError: an original model that puts tiles together by place (`mm_patch_merge_type` other than "flat").
    """
    if is_original_llava(model):
        compress_original(model, dominant, contextual)
        return model
    return compress(model, dominant=dominant, contextual=contextual)
