"""Compress a model of transformers, and undo it."""

from __future__ import annotations

from typing import TypeVar

from transformers import PreTrainedModel, ProcessorMixin

from visionzip_ext.integrations.transformers import placeholders
from visionzip_ext.integrations.transformers.budget import Budget
from visionzip_ext.integrations.transformers.registry import ADAPTERS, adapter_for
from visionzip_ext.integrations.transformers.zip_tower import ZipDecision

Model = TypeVar("Model", bound=PreTrainedModel)


def compress(
    model: Model,
    processor: ProcessorMixin | None = None,
    *,
    dominant: int = 54,
    contextual: int = 10,
    merge: str = "residual",
    early_exit: bool = True,
) -> Model:
    """Give the model's language model dominant + contextual visual tokens for each image, in place.

    Afterwards `processor(...)`, `model(...)` and `model.generate(...)` are used as before. Only this instance changes:
    no class is patched, and the vision tower keeps its attention implementation (SDPA, flash, eager). Weights, config
    and what the model's `save_pretrained` writes stay as they are. Calling it again changes the budget.

    Source: VisionZip (arXiv 2412.04467), section 3; the defaults are its setting of 64 tokens for LLaVA-1.5.

    Args:
        model: an instance of one of `supported_models()`.
        processor: the model's processor, which then writes as many image placeholders. Without one, the caller sees to
            it that each image has dominant + contextual of them in `input_ids`.
        dominant: tokens kept as they are, at least 1; the CLS token, where the tower has one, is among them.
        contextual: tokens that all others are merged into, at least 0.
        merge: "residual" as in the released implementation, or "mean" as in the paper's words; see `visionzip_ext.zip`.
        early_exit: leave out the vision tower's layers after the one whose features the model uses.

    Returns:
        The same model.

    Raises:
        TypeError: a model, vision tower or processor of an unsupported class; a budget that is not an int.
        ValueError: a budget that the tower's tokens cannot fill, an unknown `merge`, a `vision_feature_layer` that
            cannot be used, a processor that belongs to another model. Model and processor are then unchanged.
    """
    family = adapter_for(model)
    adapter = family.bind(model, Budget(dominant, contextual, merge), early_exit=early_exit)
    change = None if processor is None else adapter.placeholders(processor)
    if (earlier := family.attached_to(model)) is not None:
        earlier.detach()
    adapter.attach()
    if change is not None:
        placeholders.apply(change, processor)
    return model


def restore(model: Model, processor: ProcessorMixin | None = None) -> Model:
    """Undo `compress`: model and processor are exactly as they were before.

    Args:
        model: a model that `compress` was called on.
        processor: the processor that was given to `compress`.

    Returns:
        The same model.

    Raises:
        TypeError: an unknown model.
        ValueError: neither of the two is compressed.
    """
    adapter = adapter_for(model).attached_to(model)
    processor_was_changed = processor is not None and placeholders.undo(processor)
    if adapter is not None:
        adapter.detach()
    elif not processor_was_changed:
        raise ValueError(f"this {type(model).__name__} is not compressed, there is nothing to restore")
    return model


def last_zip(model: PreTrainedModel) -> ZipDecision | None:
    """Which tokens the latest forward kept, merged and dropped; None if no image has gone through yet.

    With several threads it is the latest forward of any of them.

    Raises:
        TypeError: an unknown model.
        ValueError: the model is not compressed.
    """
    adapter = adapter_for(model).attached_to(model)
    if adapter is None:
        raise ValueError(
            f"this {type(model).__name__} is not compressed; call visionzip_ext.compress(model, processor) first"
        )
    return adapter.last_decision


def supported_models() -> tuple[str, ...]:
    """The class names of transformers that `compress` accepts."""
    return tuple(ADAPTERS)
