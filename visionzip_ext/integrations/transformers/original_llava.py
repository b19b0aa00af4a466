"""Models of the original LLaVA repositories, which keep their vision tower as `get_vision_tower()`.

They splice as many features into the prompt as the tower returns, so that its `forward` is all there is to replace, on
the instance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visionzip_ext.integrations.transformers.encoders import VisionZipEncoder


@dataclass(eq=False)
class _TowerForward:
    """What a tower instance has in place of its bound `forward`; copies of the tower carry one of their own."""

    tower: nn.Module
    encoder: VisionZipEncoder

    @torch.no_grad()
    def __call__(self, images: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        """Images (B, 3, height, width) -> (B, dominant + contextual, C), in their dtype; or lists of single ones."""
        if isinstance(images, list):
            return [self(image.unsqueeze(0)) for image in images]
        pixel_values = images.to(device=self.tower.device, dtype=self.tower.dtype)
        return self.encoder(pixel_values).tokens.to(images.dtype)


def is_original_llava(model: Any) -> bool:
    """Whether `model` is one: it has `get_vision_tower()`, and that a `select_layer`."""
    return hasattr(model, "get_vision_tower") and hasattr(model.get_vision_tower(), "select_layer")


def compress_original(model: nn.Module, dominant: int, contextual: int) -> None:
    """Let the model's tower return dominant + contextual features of an image.

    Raises:
        TypeError, ValueError: as `VisionZipEncoder`.
        ValueError: the model puts tiles together by their places, for which all features are needed.
    """
    merge_type = getattr(model.config, "mm_patch_merge_type", "flat")
    if merge_type != "flat":
        raise ValueError(
            f"model.config.mm_patch_merge_type is {merge_type!r}, which puts an image's tiles together by places that "
            'zipped tokens have no more; set it to "flat", or take the checkpoint as a '
            "LlavaNextForConditionalGeneration of transformers, which visionzip_ext.compress supports with tiles"
        )
    restore_original(model)
    tower = model.get_vision_tower()
    tower.forward = _TowerForward(tower, VisionZipEncoder(tower, dominant, contextual))


def restore_original(model: nn.Module) -> bool:
    """Undo `compress_original`. False if there is nothing to undo."""
    tower = model.get_vision_tower()
    forward = tower.__dict__.get("forward")
    if not isinstance(forward, _TowerForward):
        return False
    forward.encoder.detach()
    del tower.forward
    return True
