"""How many tokens each of several images may have, by its size."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import deprecated

__all__ = ["Budgets", "allocate_budgets", "budget"]


class Budgets(NamedTuple):
    """The `k` and `m` of `zip_packed`: dominant and contextual tokens of each image."""

    k: list[int]
    m: list[int]


def allocate_budgets(
    lengths: Iterable[int] | Tensor,
    *,
    ratio: float | None = None,
    total: int | None = None,
    contextual_share: float = 10 / 64,
) -> Budgets:
    """Spread tokens over images by their sizes: k and m for `zip_packed`.

    Args:
        lengths: the tokens of each image: ints, or an integer tensor on the CPU (n,), such as `cu_seqlens.diff()`.
        ratio: each image keeps this share of its own tokens, rounded to the nearest and at least one: an image's budget
            does not depend on the others.
        total: all images together keep exactly so many tokens, in proportion to their sizes (largest remainder; equal
            remainders: the first image), at least one each. Either this or `ratio`.
        contextual_share: the share of an image's tokens that are contextual, rounded to the nearest; the rest are
            dominant. The default is the paper's for LLaVA-1.5, 54 + 10.

    Returns:
        (k, m), a list each: k + m of an image never exceeds its length, and is 0 for an empty image alone.

    Raises:
        TypeError: an argument is not of the type said.
        ValueError: a length is negative; ratio is not in (0, 1]; contextual_share is not in [0, 1]; total is more than
            all tokens, or fewer than one for each image that has any; ratio and total both or neither.
    """
    lengths = _checked_lengths(lengths)
    share = _share("contextual_share", contextual_share)
    if (ratio is None) == (total is None):
        raise ValueError(f"expected either ratio or total, got ratio={ratio!r} and total={total!r}")
    if total is None:
        share_kept = _share("ratio", ratio)
        if share_kept == 0:
            raise ValueError(f"ratio must be above 0 and at most 1, got {ratio}")
        tokens = [max(_rounded(share_kept * length), 1 if length else 0) for length in lengths]
    else:
        tokens = _apportion(lengths, _checked_total(total, lengths))
    m = [_rounded(share * count) for count in tokens]
    return Budgets([count - contextual for count, contextual in zip(tokens, m, strict=True)], m)


@deprecated("visionzip_ext.budget is called allocate_budgets now; the old name goes with the next release")
def budget(lengths: Iterable[int] | Tensor, **options: Any) -> Budgets:
    """`allocate_budgets` by its old name."""
    return allocate_budgets(lengths, **options)


def as_int(name: str, value: Any) -> int:
    """The int that an argument is or, as NumPy's integers do, stands for; TypeError where there is none, as in True."""
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            return operator.index(value)
    raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")


def _checked_lengths(lengths: Iterable[int] | Tensor) -> list[int]:
    expected = "lengths must be ints or a tensor (n,) of int64 or int32 on the CPU"
    if isinstance(lengths, Tensor):
        if lengths.device.type != "cpu" or lengths.ndim != 1 or lengths.dtype not in (torch.int32, torch.int64):
            raise TypeError(
                f"{expected}, got a tensor of {lengths.dtype} and shape {tuple(lengths.shape)} on {lengths.device}"
            )
        lengths = lengths.tolist()
    try:
        lengths = list(lengths)
    except TypeError:
        raise TypeError(f"{expected}, got {lengths!r} of type {type(lengths).__name__}") from None
    lengths = [as_int(f"lengths[{i}]", length) for i, length in enumerate(lengths)]
    for i, length in enumerate(lengths):
        if length < 0:
            raise ValueError(f"lengths[{i}] must be at least 0, got {length}")
    return lengths


def _share(name: str, value: float | None) -> Fraction:
    """Exactly what the float is: products with it are rounded once."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a float, got {value!r} of type {type(value).__name__}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be at least 0 and at most 1, got {value}")
    return Fraction(value)


def _checked_total(total: int, lengths: list[int]) -> int:
    total = as_int("total", total)
    least, most = sum(length > 0 for length in lengths), sum(lengths)
    if not least <= total <= most:
        raise ValueError(
            f"total must be at least {least} (one for each image that has tokens) and at most {most} (all tokens), "
            f"got {total}"
        )
    return total


def _rounded(x: Fraction) -> int:
    """To the nearest; halves up."""
    return math.floor(x + Fraction(1, 2))


def _apportion(lengths: list[int], total: int) -> list[int]:
    """In proportion to lengths, adding up to total: largest remainder, and nobody who has any goes without."""
    most = sum(lengths)
    if most == 0:
        return [0] * len(lengths)
    tokens = [total * length // most for length in lengths]
    by_remainder = sorted(range(len(lengths)), key=lambda i: -(total * lengths[i] % most))  # sorting is stable
    for i in by_remainder[: total - sum(tokens)]:
        tokens[i] += 1
    for i in range(len(lengths)):
        if lengths[i] > 0 and tokens[i] == 0:
            tokens[max(range(len(tokens)), key=tokens.__getitem__)] -= 1
            tokens[i] = 1
    return tokens
