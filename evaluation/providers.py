"""Ways to have fewer visual tokens, by name: VisionZip through `compress`, and what it must be better than."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from visionzip_ext import analysis

_SIDE = SIZE // PATCH
GRIDS = {8: (4, 2), 16: (4, 4), 32: (8, 4), 48: (8, 6)}
"""Rows and columns of so many tokens that lie evenly over the image: 5.6, 11, 22 and 33 % of all."""


@dataclass(frozen=True)
class Encoded:
    """What the encoder makes of B images, without CLS.

    Attributes:
        features: (B, patches, channels).
        scores: (B, patches): CLS's attention, the mean over heads.
        keys: (B, patches, head channels): the mean over heads.
    """

    features: Tensor
    scores: Tensor
    keys: Tensor


Reduction = Callable[[Encoded, int, torch.Generator], Tensor]
"""(encoded, tokens, generator) -> (B, tokens, channels)."""


def split(tokens: int) -> tuple[int, int]:
    """Dominant and contextual, 54 to 10, as the paper divides (sec. 4.1)."""
    contextual = max(1, round(tokens * 10 / 64))
    return tokens - contextual, contextual


def _all_dominant(tokens: int) -> tuple[int, int]:
    return tokens, 0


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
            rows = model.model.multi_modal_projector(reduce(encode(model, pixel_values), tokens, generator))
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


@torch.no_grad()
def encode(model: LlavaForConditionalGeneration, pixel_values: Tensor) -> Encoded:
    tower = model.model.vision_tower
    *_, before, features, _ = tower(pixel_values, output_hidden_states=True).hidden_states
    layer = tower.encoder.layer[-2]
    normed, heads = layer.norm1(before), tower.config.num_attention_heads
    queries, keys = (
        project(normed).unflatten(2, (heads, -1)).transpose(1, 2)
        for project in (layer.attention.q_proj, layer.attention.k_proj)
    )
    of_cls = (queries[:, :, :1] @ keys.transpose(2, 3) * keys.shape[3] ** -0.5).softmax(-1)
    return Encoded(features[:, 1:], of_cls[:, :, 0, 1:].mean(1), keys[:, :, 1:].mean(1))


def _selected_by(name: str, select: Callable[[Tensor, Tensor, int], Tensor]) -> Provider:
    return _reduced_by(name, lambda encoded, tokens, _: _rows(encoded, select(encoded.scores, encoded.keys, tokens)))


def _rows(encoded: Encoded, patches: Tensor) -> Tensor:
    """(B, k) patches -> their features."""
    return encoded.features.gather(1, patches[..., None].expand(-1, -1, encoded.features.shape[2]))


def _random(encoded: Encoded, tokens: int, generator: torch.Generator) -> Tensor:
    order = torch.rand(encoded.scores.shape, generator=generator).argsort(1)
    return _rows(encoded, order[:, :tokens].sort(1).values)


def _grid(encoded: Encoded, tokens: int, generator: torch.Generator) -> Tensor:
    y, x = (((torch.arange(count) + 0.5) * _SIDE / count).long() for count in GRIDS[tokens])
    return encoded.features[:, (y[:, None] * _SIDE + x).flatten()]


def _pool(encoded: Encoded, tokens: int, generator: torch.Generator) -> Tensor:
    image = encoded.features.transpose(1, 2).unflatten(2, (_SIDE, _SIDE))
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
        _visionzip("attention, nothing merged", _all_dominant),
        _visionzip("visionzip, kept positions", split, positions="kept"),
        _visionzip("visionzip, no row for CLS", split, keep_cls=False),
        _visionzip("attention, nothing merged, kept positions", _all_dominant, positions="kept"),
        _visionzip("distinct", _all_dominant, policy="distinct"),
        _visionzip("distinct, kept positions", _all_dominant, policy="distinct", positions="kept"),
        _visionzip("distinct, no row for CLS", _all_dominant, policy="distinct", keep_cls=False),
        _visionzip("distinct, merged", split, policy="distinct"),
        _reduced_by("random", _random),
        _reduced_by("uniform grid", _grid),
        _reduced_by("average pooling", _pool),
        _selected_by("suppression by place", analysis.suppressed_by_place),
        _selected_by("greedy DPP", analysis.greedy_dpp),
        _selected_by("SCOPE", analysis.scope),
        *ASKING,
    )
}
"""By name. `compress` counts CLS among its tokens, unless the name says otherwise; the others have patches alone."""
REDUCING = [name for name, provider in PROVIDERS.items() if provider not in ASKING]
"""Those that reduce before the language model, whatever is asked."""
