"""Other rules that choose patches by the same scores and keys as VisionZip, in plain PyTorch: to be compared with it.

Each takes scores (B, S) and keys (B, S, D) of patches, and gives the indices (B, k) of those that stay, ascending.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def by_place(scores: Tensor, keys: Tensor, k: int) -> Tensor:
    """Highest scores, each of which halves those around it: what spreading alone gains, whatever patches show.

    Patches are those of a square in raster order. Of a patch at distance d of one that was chosen
    1 - exp(-d^2 / 4.5) / 2 of the score is left.
    """
    side = round(scores.shape[1] ** 0.5)
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()
    left = 1 - (-torch.cdist(places, places).square() / 4.5).exp() / 2
    scores = scores.clone()

    def chosen(v: Tensor) -> Tensor:
        return scores.mul_(left[v])

    return _greedy(scores, chosen, k)


def determinantal(scores: Tensor, keys: Tensor, k: int) -> Tensor:
    """Greedy maximum of a determinantal point process (Chen, Zhang and Zhou 2018, algorithm 1).

    Its kernel is diag(q) (C + 1e-4 I) diag(q): q the scores' square roots, C the cosines of keys.
    """
    quality = scores.sqrt()
    kernel = (_cosines(keys) + 1e-4 * torch.eye(keys.shape[1])) * quality[:, :, None] * quality[:, None, :]
    gains = kernel.diagonal(dim1=1, dim2=2).clone()  # of the determinant, by each patch
    rows = torch.arange(len(scores))
    factors: list[Tensor] = []

    def chosen(v: Tensor) -> Tensor:
        row = kernel[rows, v]
        for factor in factors:
            row = row - factor[rows, v][:, None] * factor
        factors.append(row / gains[rows, v].clamp(min=1e-12).sqrt()[:, None])
        return gains.sub_(factors[-1].square())

    return _greedy(gains, chosen, k)


def scope(scores: Tensor, keys: Tensor, k: int) -> Tensor:
    """SCOPE (Deng et al. 2025): what a patch adds to how well all are covered, times its score squared.

    A patch is covered as well as the nearest of the chosen ones resembles it. Resemblance is the cosine of keys.
    """
    cosines = _cosines(keys).clamp(min=0)
    covered = torch.zeros_like(scores)
    rows = torch.arange(len(scores))

    def gains() -> Tensor:
        return (cosines - covered[:, None]).clamp(min=0).sum(2) * scores.square()

    def chosen(v: Tensor) -> Tensor:
        torch.maximum(covered, cosines[rows, v], out=covered)
        return gains()

    return _greedy(gains(), chosen, k)


def _greedy(worth, chosen, k: int) -> Tensor:
    """k times the worthiest that is left; `chosen` says what the others are worth then."""
    taken = torch.zeros_like(worth, dtype=torch.bool)
    picks = []
    for _ in range(k):
        v = worth.masked_fill(taken, -torch.inf).argmax(1)
        taken[torch.arange(len(v)), v] = True
        picks.append(v)
        worth = chosen(v)
    return torch.stack(picks, 1).sort(1).values


def _cosines(keys: Tensor) -> Tensor:
    unit = functional.normalize(keys, dim=-1)
    return unit @ unit.transpose(1, 2)
