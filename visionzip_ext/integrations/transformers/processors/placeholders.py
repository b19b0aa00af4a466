"""Makes a processor write as many placeholders as the compressed model makes visual tokens.

A change to a processor is an object that can be undone. It stays on the processor, where `undo` finds it; what
`save_pretrained` writes is limited to the arguments of the processor's constructor, so the change object is not saved.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from transformers import ProcessorMixin

from visionzip_ext.integrations.transformers.weak_link import WeakLink

_ATTRIBUTE = "_visionzip"


class PlaceholderChange(ABC):
    """A change of a processor's placeholder count; without a reference to the processor, which may be copied.

    Attributes:
        adapter: the `ModelAdapter` that it was made for.
    """

    adapter = WeakLink()

    @abstractmethod
    def do(self, processor: Any) -> None:
        """Change the processor."""

    @abstractmethod
    def undo(self, processor: Any) -> None:
        """Change it back."""


class AdditionalImageTokens(PlaceholderChange):
    """Sets the placeholder count of a LLaVA-1.5 processor: a plain number of its own configuration.

    The processor writes rows * columns + num_additional_image_tokens placeholders, less one for the select strategy
    "default", so a negative number makes fewer. It goes through save/load, chat templates and pipelines.
    """

    def __init__(self, tokens: int, uncompressed: int, patches: int) -> None:
        """For `tokens` placeholders an image.

        Args:
            tokens: placeholders wanted.
            uncompressed: visual tokens of the model without compression.
            patches: rows * columns of its vision tower.
        """
        self._tokens = tokens
        self._uncompressed = uncompressed
        self._patches = patches
        self._original: int | None = None

    def do(self, processor: Any) -> None:
        """Set the number that makes the placeholders wanted."""
        others = self._patches - (processor.vision_feature_select_strategy == "default")
        found, wanted = processor.num_additional_image_tokens, self._tokens - others
        # No checkpoint has fewer than none: such a processor was saved while compressed, perhaps to another budget.
        saved_compressed = found < 0 or found == wanted
        self._original = self._uncompressed - others if saved_compressed else found
        processor.num_additional_image_tokens = wanted

    def undo(self, processor: Any) -> None:
        """Set the number that was there."""
        processor.num_additional_image_tokens = self._original


class TokensOfTile(PlaceholderChange):
    """Sets how many placeholders a processor writes for a tile, where that is a plain number of its own configuration.

    It goes through save/load, chat templates and pipelines.
    """

    def __init__(self, attribute: str, tokens: int, uncompressed: int, processor: Any) -> None:
        """Check `processor` and change nothing yet.

        Args:
            attribute: the number's name.
            tokens: placeholders wanted.
            uncompressed: tokens that the model makes of a tile without compression.
            processor: that the change is meant for.

        Raises:
            ValueError: it writes more than the model has. Fewer it may write if it was saved while compressed.
        """
        found = getattr(processor, attribute)
        if found > uncompressed:
            raise ValueError(
                f"processor.{attribute} is {found}, but the model makes {uncompressed} tokens of a tile; take the "
                "processor of the same checkpoint"
            )
        self._attribute = attribute
        self._tokens = tokens
        self._uncompressed = uncompressed

    def do(self, processor: Any) -> None:
        """Set the number wanted."""
        self.write(processor, self._tokens)

    def undo(self, processor: Any) -> None:
        """Set the model's own."""
        self.write(processor, self._uncompressed)

    def write(self, processor: Any, tokens: int) -> None:
        """Set the number, and what the processor made of it."""
        setattr(processor, self._attribute, tokens)


def apply(change: PlaceholderChange, processor: ProcessorMixin) -> None:
    """Make the change, in place of the one that the processor has, if any."""
    undo(processor)
    change.do(processor)
    setattr(processor, _ATTRIBUTE, change)


def change_of(processor: ProcessorMixin) -> PlaceholderChange | None:
    """The change that the processor has, if any."""
    return getattr(processor, _ATTRIBUTE, None)


def undo(processor: ProcessorMixin) -> bool:
    """Undo the change that the processor has. False if it has none."""
    change = change_of(processor)
    if change is None:
        return False
    delattr(processor, _ATTRIBUTE)
    change.undo(processor)
    return True
