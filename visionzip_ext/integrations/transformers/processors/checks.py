"""Whether a processor belongs to a model, found out before anything is changed."""

from __future__ import annotations

from typing import Any

_WAY_OUT = "take the processor of the same checkpoint"


def check_class(processor: Any, name: str) -> None:
    """Raise TypeError unless the processor is of this class of transformers."""
    if not any(cls.__name__ == name for cls in type(processor).__mro__):
        raise TypeError(f"processor must be the model's {name}, got {type(processor).__name__}")


def check_patches(processor: Any, vision_config: Any) -> None:
    """Raise ValueError unless the processor counts patches of the vision tower's size."""
    if processor.patch_size != vision_config.patch_size:
        raise ValueError(
            f"processor.patch_size is {processor.patch_size}, but the model's vision tower has patches of "
            f"{vision_config.patch_size} pixels; {_WAY_OUT} or set processor.patch_size = {vision_config.patch_size}"
        )


def check_size(processor: Any, vision_config: Any) -> None:
    """Raise ValueError unless the processor makes images, or tiles, of the vision tower's size."""
    size, expected = _image_size(processor.image_processor), vision_config.image_size
    height, width = (expected, expected) if isinstance(expected, int) else expected
    if size != (height, width):
        raise ValueError(
            f"the processor makes images of {size[0]} x {size[1]} pixels, the model's vision tower takes "
            f"{height} x {width}; {_WAY_OUT}"
        )


def check_token(processor: Any, config: Any, modality: str) -> None:
    """Raise ValueError unless processor and model mean the same token by a placeholder ("image" or "video")."""
    ours, theirs = getattr(processor, f"{modality}_token_id"), getattr(config, f"{modality}_token_id")
    if ours != theirs:
        raise ValueError(
            f"the processor's {modality} token {getattr(processor, f'{modality}_token')!r} has id {ours}, the model "
            f"expects {theirs} (config.{modality}_token_id); {_WAY_OUT}"
        )


def check_pinpoints(processor: Any, config: Any) -> None:
    """Raise ValueError unless processor and model choose among the same grids of tiles."""
    ours, theirs = (
        sorted(map(tuple, pinpoints))
        for pinpoints in (processor.image_processor.image_grid_pinpoints, config.image_grid_pinpoints)
    )
    if ours != theirs:
        raise ValueError(
            f"the processor cuts images by image_grid_pinpoints={ours}, the model expects {theirs}; {_WAY_OUT}"
        )


def _image_size(image_processor: Any) -> tuple[int, int]:
    """(height, width) of the pixel values that an image processor makes."""
    size = image_processor.crop_size if getattr(image_processor, "do_center_crop", False) else image_processor.size
    edge = size.get("shortest_edge")
    return (size["height"], size["width"]) if edge is None else (edge, edge)
