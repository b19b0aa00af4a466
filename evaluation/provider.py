"""What a provider of few visual tokens is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

Answer = Callable[
    [LlavaForConditionalGeneration, LlavaProcessor, Sequence[Image.Image], Sequence[Sequence[str]]], list[str]
]
"""As `answers.generated`."""


@dataclass(frozen=True)
class Provider:
    """A way to have fewer visual tokens.

    Attributes:
        name: in results and tables.
        applied: (model, processor, tokens) changes both for the time of a `with`, and gives what answers questions.
    """

    name: str
    applied: Callable[[LlavaForConditionalGeneration, LlavaProcessor, int], contextlib.AbstractContextManager[Answer]]
