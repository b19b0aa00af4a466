"""Ways to have fewer visual tokens, by name: VisionZip through `compress`, and what it must be better than."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

import visionzip_ext
from evaluation.answers import generated
from evaluation.checkpoint import IMAGE_TOKENS, PATCH
from evaluation.provider import Answer, Provider
from evaluation.question_pruning import ASKING
from evaluation.scenes import SIZE

_SIDE = SIZE // PATCH
GRIDS = {8: (4, 2), 16: (4, 4), 32: (8, 4), 48: (8, 6)}
"""Rows and columns of so many tokens that lie evenly over the image: 5.6, 11, 22 and 33 % of all."""

Reduction = Callable[[Tensor, int, torch.Generator], Tensor]
"""(features (B, patches, channels), tokens, generator) -> (B, tokens, channels)."""


def split(tokens: int) -> tuple[int, int]:
    """Dominant and contextual, 54 to 10, as the paper divides (sec. 4.1)."""
    contextual = max(1, round(tokens * 10 / 64))
    return tokens - contextual, contextual


def _visionzip(name: str, split: Callable[[int], tuple[int, int]], **options: Any) -> Provider:
    @contextlib.contextmanager
    def applied(model: LlavaForConditionalGeneration, processor: LlavaProcessor, tokens: int) -> Iterator[Answer]:
        dominant, contextual = split(tokens)
        visionzip_ext.compress(model, processor, dominant=dominant, contextual=contextual, **options)
        try:
            yield generated
        finally:
            visionzip_ext.restore(model, processor)

    return Provider(name, applied)


def _reduced_by(name: str, reduce: Reduction) -> Provider:
    @contextlib.contextmanager
    def applied(model: LlavaForConditionalGeneration, processor: LlavaProcessor, tokens: int) -> Iterator[Answer]:
        generator = torch.Generator().manual_seed(tokens)

        def image_features(pixel_values: Tensor, *_: Any, **__: Any) -> Any:
            hidden = model.model.vision_tower(pixel_values, output_hidden_states=True).hidden_states[-2]
            rows = model.model.multi_modal_projector(reduce(hidden[:, 1:], tokens, generator))
            return BaseModelOutputWithPooling(pooler_output=list(rows))

        additional = processor.num_additional_image_tokens
        model.model.get_image_features = image_features
        processor.num_additional_image_tokens = additional + tokens - IMAGE_TOKENS
        try:
            yield generated
        finally:
            processor.num_additional_image_tokens = additional
            del model.model.get_image_features

    return Provider(name, applied)


def _random(features: Tensor, tokens: int, generator: torch.Generator) -> Tensor:
    order = torch.rand(features.shape[:2], generator=generator).argsort(1)[:, :tokens].sort(1).values
    return features.gather(1, order[..., None].expand(-1, -1, features.shape[2]))


def _grid(features: Tensor, tokens: int, generator: torch.Generator) -> Tensor:
    y, x = (((torch.arange(count) + 0.5) * _SIDE / count).long() for count in GRIDS[tokens])
    return features[:, (y[:, None] * _SIDE + x).flatten()]


def _pool(features: Tensor, tokens: int, generator: torch.Generator) -> Tensor:
    image = features.transpose(1, 2).unflatten(2, (_SIDE, _SIDE))
    return functional.adaptive_avg_pool2d(image, GRIDS[tokens]).flatten(2).transpose(1, 2)


@contextlib.contextmanager
def _all(model: LlavaForConditionalGeneration, processor: LlavaProcessor, tokens: int) -> Iterator[Answer]:
    yield generated


ALL_TOKENS = Provider("all tokens", _all)
PROVIDERS = {
    provider.name: provider
    for provider in (
        _visionzip("visionzip", split),
        _visionzip("visionzip, mean", split, merge="mean"),
        _visionzip("attention, nothing merged", lambda tokens: (tokens, 0)),
        _reduced_by("random", _random),
        _reduced_by("uniform grid", _grid),
        _reduced_by("average pooling", _pool),
        *ASKING,
    )
}
"""By name. VisionZip counts CLS among its tokens; the others have patches alone."""
REDUCING = [name for name, provider in PROVIDERS.items() if provider not in ASKING]
"""Those that reduce before the language model, whatever is asked."""
