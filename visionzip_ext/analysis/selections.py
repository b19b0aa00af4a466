"""Greedy selections by the same scores and keys as the operators'.

Each takes k tokens one after another, the one that is worth most given those before; of equal ones the lower index.
Symbols as in `visionzip_ext.reference`: B images, S tokens (patches, without CLS), H heads, D channels of a key.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from visionzip_ext import reference


def greedy_dpp(scores: Tensor, keys: Tensor, k: int, *, exponent: float = 0.5, ridge: float = 1e-4) -> Tensor:
    """The greedy maximum of a determinantal point process: each token adds most to a determinant.

    Its kernel is diag(q) (C + ridge I) diag(q), q = scores ** exponent, C the cosines of keys: tokens of high score
    that resemble no other span the largest volume. CDPruner (arXiv 2506.10967) chooses so, by relevance to a question.

    Source: Chen, Zhang and Zhou, "Fast Greedy MAP Inference for Determinantal Point Process" (arXiv 1709.05135),
    algorithm 1. O(k^2 S) beside the cosines.

    Args:
        scores: (B, S), at least 0: how much each token is attended to.
        keys: (B, S, D), or (B, H, S, D) of which the mean over heads is taken.
        k: how many are kept.
        exponent: how much scores count.
        ridge: keeps the determinant from vanishing where tokens are equal or more are kept than D.

    Returns:
        (B, k) int64, ascending.

    Raises:
        ValueError: shapes that do not fit, or k out of range.
    """
    scores, cosines = _checked(scores, keys, k)
    quality = scores.pow(exponent)
    kernel = (cosines + ridge * torch.eye(scores.shape[1], device=scores.device)) * quality.unsqueeze(2)
    kernel = kernel * quality.unsqueeze(1)
    gains = kernel.diagonal(dim1=1, dim2=2).clone()  # how many times larger the determinant becomes
    rows = torch.arange(len(scores), device=scores.device)
    factors: list[Tensor] = []  # rows of the Cholesky factor of the kept tokens' kernel

    def keep(token: Tensor) -> Tensor:
        row = kernel[rows, token]
        for factor in factors:
            row = row - factor[rows, token].unsqueeze(1) * factor
        factors.append(row / gains[rows, token].clamp(min=1e-12).sqrt().unsqueeze(1))
        return gains.sub_(factors[-1].square())

    return _greedy(gains, keep, k)


def scope(scores: Tensor, keys: Tensor, k: int, *, alpha: float = 2.0) -> Tensor:
    """SCOPE: each token is the one that adds most to how well all are covered, times its score ** alpha.

    A token is covered as well as it resembles the nearest of those that are kept, by the cosine of keys, at least 0.

    Source: Deng et al., "SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodal LLMs" (arXiv
    2510.24214), which measures resemblance on tokens; here it is on keys, as in the operators. O(k S^2).

    Args:
        scores: (B, S), at least 0: how much each token is attended to.
        keys: (B, S, D), or (B, H, S, D) of which the mean over heads is taken.
        k: how many are kept.
        alpha: how much scores count.

    Returns:
        (B, k) int64, ascending.

    Raises:
        ValueError: shapes that do not fit, or k out of range.
    """
    scores, cosines = _checked(scores, keys, k)
    cosines = cosines.clamp(min=0)
    weights, covered = scores.pow(alpha), torch.zeros_like(scores)
    rows = torch.arange(len(scores), device=scores.device)

    def worth() -> Tensor:
        return (cosines - covered.unsqueeze(1)).clamp(min=0).sum(2) * weights

    def keep(token: Tensor) -> Tensor:
        torch.maximum(covered, cosines[rows, token], out=covered)
        return worth()

    return _greedy(worth(), keep, k)


def suppressed_by_place(scores: Tensor, keys: Tensor, k: int, *, width: float = 1.5, strength: float = 0.5) -> Tensor:
    """The highest scores, each of which lowers those around it: a control for what spreading alone gains.

    What patches show has no part in it: of the score of a patch at distance d from a kept one, in patches, 1 - strength
    * exp(-d^2 / (2 width^2)) is left.

    Args:
        scores: (B, S), at least 0, of a square of patches in raster order: how much each is attended to.
        keys: (B, S, D) or (B, H, S, D): not looked at; as for the others.
        k: how many are kept.
        width: of the neighbourhood, in patches.
        strength: how much a patch takes from its next neighbours, from 0 to 1.

    Returns:
        (B, k) int64, ascending.

    Raises:
        ValueError: shapes that do not fit, patches that make no square, or k out of range.
    """
    scores, _ = _checked(scores, keys, k)
    side = math.isqrt(scores.shape[1])
    if side**2 != scores.shape[1]:
        raise ValueError(f"scores must be of a square of patches, got {scores.shape[1]} of an image")
    along = torch.arange(side, dtype=scores.dtype, device=scores.device)
    places = torch.cartesian_prod(along, along)
    distances = (places.unsqueeze(1) - places).square().sum(-1)
    left = 1 - strength * torch.exp(-distances / (2 * width**2))
    worth = scores.clone()
    return _greedy(worth, lambda token: worth.mul_(left[token]), k)


def _greedy(worth: Tensor, keep: Callable[[Tensor], Tensor], k: int) -> Tensor:
    """k times the worthiest of each image (B, S) that is not taken; `keep` says what all are worth then."""
    taken = torch.zeros_like(worth, dtype=torch.bool)
    kept = []
    for _ in range(k):
        token = worth.masked_fill(taken, -torch.inf).argmax(1)
        taken[torch.arange(len(token), device=token.device), token] = True
        kept.append(token)
        worth = keep(token)
    return torch.stack(kept, 1).sort(1).values


def _checked(scores: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores and the cosines of keys (B, S, S), in float32 at least."""
    metric = reference.head_mean(keys) if keys.ndim in (3, 4) else keys
    if scores.ndim != 2 or metric.ndim != 3 or metric.shape[:2] != scores.shape:
        raise ValueError(
            f"expected scores (B, S) and keys (B, S, D) or (B, H, S, D), got {tuple(scores.shape)} and "
            f"{tuple(keys.shape)}"
        )
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k must be at least 1 and at most {scores.shape[1]}, the tokens of an image, got {k}")
    unit = functional.normalize(metric, dim=-1)
    return scores.to(unit.dtype), unit @ unit.transpose(1, 2)
