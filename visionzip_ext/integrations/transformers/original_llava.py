"""Models of the original LLaVA repositories, which keep their vision tower as `get_vision_tower()`.

They splice as many features into the prompt as the tower returns, so that its `forward` is all there is to replace, on
the instance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from visionzip_ext.integrations.transformers.encoders import VisionZipEncoder, ZippedImages, zip_tower_of
from visionzip_ext.tokens.budget import Budget
from visionzip_ext.tokens.decision import ZipDecision


@dataclass(eq=False)
class _TowerForward:
    """What a tower instance has in place of its bound `forward`; copies of the tower carry one of their own.

    Attributes:
        tower: the instance.
        encoder: zips its vision model's tokens.
        before: a `forward` of the instance's own, which accelerate puts there; None if it had the class's.
        last_decision: see `last_zip`.
    """

    tower: Any  # a class of the repository
    encoder: VisionZipEncoder
    before: Callable | None
    last_decision: ZipDecision | list | None = None

    def __call__(self, images: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        """Images (B, 3, height, width) -> (B, dominant + contextual, C), in their dtype; or lists of single ones."""
        if isinstance(images, list):
            singles = [self._zip(image.unsqueeze(0)) for image in images]
            self.last_decision = [each.decision for each in singles]
            return [each.tokens.to(image.dtype) for each, image in zip(singles, images, strict=True)]
        zipped = self._zip(images)
        self.last_decision = zipped.decision
        return zipped.tokens.to(images.dtype)

    def _zip(self, images: Tensor) -> ZippedImages:
        images = images.to(device=self.tower.device, dtype=self.tower.dtype)
        return self.encoder.zip_through(self.tower.vision_tower, images)


def is_original_llava(model: Any) -> bool:
    """Whether `model` is one: it has `get_vision_tower()`, and that a `select_layer`."""
    return hasattr(model, "get_vision_tower") and hasattr(model.get_vision_tower(), "select_layer")


def compress_original(model: Any, dominant: int, contextual: int) -> None:
    """Let the model's tower return dominant + contextual features of an image.

    Raises:
        TypeError, ValueError: as `VisionZipEncoder`.
        ValueError: the model puts tiles together by their places, for which all features are needed; or its tower puts
            features together from several scales. An earlier setting then stays.
    """
    merge_type = getattr(model.config, "mm_patch_merge_type", "flat")
    if merge_type != "flat":
        raise ValueError(
            f"model.config.mm_patch_merge_type is {merge_type!r}, which puts an image's tiles together by places that "
            'zipped tokens have no more; set it to "flat", or take the checkpoint as a '
            "LlavaNextForConditionalGeneration of transformers, which visionzip_ext.compress supports with tiles"
        )
    tower = model.get_vision_tower()
    _check_channels(tower, zip_tower_of(tower, Budget(dominant, contextual), None, early_exit=True).depths)
    restore_original(model)
    before = tower.__dict__.get("forward")
    tower.forward = _TowerForward(tower, VisionZipEncoder(tower, dominant, contextual), before)


def _check_channels(tower: Any, depths: tuple[int, ...]) -> None:
    """Raise ValueError if the tower puts more into a feature than its vision model's layers."""
    channels = tower.vision_tower.config.hidden_size * len(depths)
    declared = getattr(tower, "hidden_size", channels)
    if declared != channels:
        raise ValueError(
            f"this {type(tower).__name__} makes features of {declared} channels, its vision model of {channels}; "
            "towers that put several scales or tokens into one feature are not supported"
        )


def restore_original(model: Any) -> bool:
    """Undo `compress_original`. False if there is nothing to undo."""
    forward = tower_forward_of(model)
    if forward is None:
        return False
    forward.encoder.detach()
    del forward.tower.forward
    if forward.before is not None:
        forward.tower.forward = forward.before
    return True


def tower_forward_of(model: Any) -> _TowerForward | None:
    """What `compress_original` put into the model's tower; None if it is not compressed."""
    forward = model.get_vision_tower().__dict__.get("forward")
    return forward if isinstance(forward, _TowerForward) else None
