"""Makes a processor write as many placeholders as the compressed model makes visual tokens.

A change to a processor is an object that can be undone. It stays on the processor, where `undo` finds it; what
`save_pretrained` writes is limited to the arguments of the processor's constructor, so the change object is not saved.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from transformers import ProcessorMixin

_ATTRIBUTE = "_visionzip"


class PlaceholderChange(ABC):
    """A change of a processor's placeholder count; without a reference to the processor, which may be copied."""

    @abstractmethod
    def do(self, processor: ProcessorMixin) -> None:
        """Change the processor."""

    @abstractmethod
    def undo(self, processor: ProcessorMixin) -> None:
        """Change it back."""


class AdditionalImageTokens(PlaceholderChange):
    """Sets the placeholder count of a LLaVA-1.5 processor: a plain number of its own configuration.

    The processor writes rows * columns + num_additional_image_tokens placeholders, less one for the select strategy
    "default", so a negative number makes fewer. It goes through save/load, chat templates and pipelines.
    """

    def __init__(self, tokens: int, patches: int) -> None:
        """For `tokens` placeholders an image, where the vision tower has `patches` = rows * columns."""
        self._more_than_patches = tokens - patches
        self._original: int | None = None

    def do(self, processor: ProcessorMixin) -> None:
        """Set the number that makes the placeholders wanted."""
        self._original = processor.num_additional_image_tokens
        taken_off = 1 if processor.vision_feature_select_strategy == "default" else 0
        processor.num_additional_image_tokens = self._more_than_patches + taken_off

    def undo(self, processor: ProcessorMixin) -> None:
        """Set the number that was there."""
        processor.num_additional_image_tokens = self._original


def apply(change: PlaceholderChange, processor: ProcessorMixin) -> None:
    """Make the change, in place of the one that the processor has, if any."""
    undo(processor)
    change.do(processor)
    setattr(processor, _ATTRIBUTE, change)


def undo(processor: ProcessorMixin) -> bool:
    """Undo the change that the processor has. False if it has none."""
    change: PlaceholderChange | None = getattr(processor, _ATTRIBUTE, None)
    if change is None:
        return False
    delattr(processor, _ATTRIBUTE)
    change.undo(processor)
    return True
