"""The encoder's first layers, computed once an image: they are the same for every provider and every trained model."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import Dinov2Model

_COUNT = 10
"""Of twelve layers. The eleventh's attention decides, and its output is the features: it always runs."""


class FirstLayers:
    """Remembers what the first layers made of each image, by the embeddings that went in."""

    def __init__(self) -> None:
        self._made: dict[bytes, Tensor] = {}

    @contextlib.contextmanager
    def remembered(self, tower: Dinov2Model) -> Iterator[None]:
        """Inside the block the tower runs its first layers only for images that are new. For inference."""
        first, *others = tower.encoder.layer[:_COUNT]
        layers = [layer.forward for layer in (first, *others)]

        def recall(hidden: Tensor, *args: Any, **options: Any) -> Tensor:
            return self._recall(hidden, lambda new: _through(layers, new, args, options))

        def pass_on(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
            return hidden

        first.forward = recall
        for layer in others:
            layer.forward = pass_on
        try:
            yield
        finally:
            for layer in (first, *others):
                del layer.forward

    def _recall(self, embeddings: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        keys = [hashlib.sha1(one.numpy().tobytes()).digest() for one in embeddings]
        if not all(key in self._made for key in keys):  # the whole batch, so that sums are those without a memory
            self._made.update(zip(keys, compute(embeddings), strict=True))
        return torch.stack([self._made[key] for key in keys])


def _through(layers: list[Callable[..., Tensor]], hidden: Tensor, args: tuple, options: dict[str, Any]) -> Tensor:
    for layer in layers:
        hidden = layer(hidden, *args, **options)
    return hidden
