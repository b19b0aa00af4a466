"""Which tokens are kept in half precision: scores in float32 from rounded queries and keys, against rounded attention.

Both start from the same rounded queries and keys, as an encoder in that dtype has them. What counts is how many of the
tokens they keep that float32 keeps, from queries and keys before rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from support.inputs import BF16, F16
from torch import Tensor, nn

import visionzip_ext
from visionzip_ext import reference

DRAWS = 5
LOGIT_SPREADS = (0.02, 0.1)
"""Standard deviations of a row's logits. A CLIP ViT-L has the first from its initialisation; the larger they are, the
farther scores lie apart, and the less rounding matters."""


class Encoder(NamedTuple):
    """The sizes of an encoder's attention, and how many tokens are kept."""

    S: int
    H: int
    D: int
    k: int
    has_cls: bool
    images: int
    """A draw. Where rounding matters least, rounded attention loses a token of every two images of CLIP."""

    def queries_and_keys(self, rng: torch.Generator, spread: float) -> tuple[Tensor, Tensor]:
        """Of a layer with random weights, on normalised tokens of which neighbours are alike: (B, H, S, D) each."""
        channels = self.H * self.D
        tokens = torch.randn(self.images, self.S, channels, generator=rng)
        smooth = nn.functional.avg_pool1d(tokens.transpose(1, 2), 9, stride=1, padding=4).transpose(1, 2)
        tokens = nn.functional.layer_norm(tokens + 3 * smooth, (channels,))
        weights = torch.randn(2, channels, channels, generator=rng) * (spread / channels) ** 0.5
        queries, keys = (tokens @ weight for weight in weights)
        return tuple(x.unflatten(2, (self.H, self.D)).transpose(1, 2) for x in (queries, keys))


CLIP = Encoder(S=577, H=16, D=64, k=54, has_cls=True, images=8)
SIGLIP = Encoder(S=729, H=16, D=72, k=54, has_cls=False, images=1)


def kept_by_rounded_attention(queries: Tensor, keys: Tensor, encoder: Encoder) -> Tensor:
    """As the released implementation does: attention in the encoder's dtype, summed (or averaged) in it, top-k."""
    rows = queries[:, :, :1] if encoder.has_cls else queries
    attn = ((rows * encoder.D**-0.5) @ keys.transpose(2, 3)).softmax(-1)
    if not encoder.has_cls:
        return attn.mean(1).mean(1).topk(encoder.k, dim=1).indices
    return attn[:, :, 0, 1:].sum(1).topk(encoder.k - 1, dim=1).indices + 1


def kept_by_us(queries: Tensor, keys: Tensor, encoder: Encoder) -> Tensor:
    hidden = queries.new_zeros(len(queries), encoder.S, 8)
    options = {"scale": encoder.D**-0.5, "has_cls": encoder.has_cls}
    return visionzip_ext.zip_qk(hidden, queries, keys, encoder.k, 10, **options).indices[:, int(encoder.has_cls) :]


def share(kept: Tensor, expected: Tensor) -> float:
    """How much of `expected` (B, n) is in `kept` (B, n)."""
    return (kept[:, :, None] == expected[:, None]).any(1).double().mean().item()


def shares(encoder: Encoder, spread: float, rng: torch.Generator) -> dict[torch.dtype, tuple[float, float]]:
    """Of float32's tokens, how much we keep, and how much rounded attention keeps."""
    queries, keys = encoder.queries_and_keys(rng, spread)
    scores = reference.qk_scores(queries, keys, encoder.D**-0.5, encoder.has_cls)
    expected = reference.keep(scores, encoder.k, encoder.has_cls)[:, int(encoder.has_cls) :]
    result = {}
    for dtype in (BF16, F16):
        rounded = queries.to(dtype), keys.to(dtype)
        result[dtype] = tuple(share(by(*rounded, encoder), expected) for by in (kept_by_us, kept_by_rounded_attention))
    return result


def means(draws: list[dict[torch.dtype, tuple[float, float]]], dtype: torch.dtype) -> tuple[float, float]:
    """The mean shares over several draws."""
    return tuple(sum(draw[dtype][who] for draw in draws) / len(draws) for who in range(2))


@pytest.mark.parametrize("spread", LOGIT_SPREADS)
@pytest.mark.parametrize("encoder", [CLIP, SIGLIP], ids=["clip", "siglip"])
def test_more_of_float32s_tokens_are_kept(encoder, spread, rng):
    draws = [shares(encoder, spread, rng) for _ in range(DRAWS)]
    for dtype in (BF16, F16):
        ours, rounded = means(draws, dtype)
        assert ours > rounded, draws
        assert ours >= 0.95, draws
