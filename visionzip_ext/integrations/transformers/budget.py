"""How many visual tokens an image may have, checked once, in the words of the person who asked."""

from __future__ import annotations

from dataclasses import dataclass

MERGE_RULES = ("residual", "mean")


@dataclass(frozen=True)
class Budget:
    """The token budget of one image and the rule by which the rest is merged.

    Attributes:
        dominant: tokens kept as they are; where the encoder has a CLS token it is one of them.
        contextual: tokens that the rest is merged into.
        merge: "residual" or "mean", see `visionzip_ext.zip`.

    Raises:
        TypeError: `dominant` or `contextual` is not an int.
        ValueError: one of them is too small, or `merge` is neither word.
    """

    dominant: int
    contextual: int
    merge: str = "residual"

    def __post_init__(self) -> None:
        """Check the three on their own; `check_fits` checks them against an encoder."""
        for name, value, least in (("dominant", self.dominant, 1), ("contextual", self.contextual, 0)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.merge not in MERGE_RULES:
            raise ValueError(f'merge must be "residual" or "mean", got {self.merge!r}')

    @property
    def tokens(self) -> int:
        """Visual tokens that the language model sees for one image."""
        return self.dominant + self.contextual

    def check_fits(self, encoder_tokens: int, encoder: str) -> None:
        """Raise ValueError unless an encoder with this many tokens an image (CLS included) has enough of them."""
        if self.tokens > encoder_tokens:
            raise ValueError(
                f"dominant={self.dominant} and contextual={self.contextual} ask for {self.tokens} tokens of an image, "
                f"but {encoder} makes {encoder_tokens}; lower them so that dominant + contextual <= {encoder_tokens}"
            )
