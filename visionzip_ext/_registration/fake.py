"""Fake kernels: the outputs' shapes and dtypes, for torch.compile, torch.export and FakeTensorMode.

They ask the operators' own checks about the sizes that they see. Of symbolic sizes these are the ones that a graph is
traced with; nothing is guarded by them, as the kernel checks every call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from visionzip_ext._registration.checks import check


def _fake(shapes: Callable[..., Any]) -> None:
    """Register `_op`, which makes empty results, as the fake kernel of `op`."""
    op = shapes.__name__.removeprefix("_")

    def kernel(*args: Any, **kwargs: Any) -> Any:
        check(op, args, kwargs)
        return shapes(*args, **kwargs)

    torch.library.register_fake(f"visionzip::{op}", kernel)


def _decision(like: Tensor, B, S, k) -> tuple[Tensor, Tensor]:
    return like.new_empty((B, k), dtype=torch.int64), like.new_empty((B, S), dtype=torch.int64)


@_fake
def _zip(hidden, keys, attn, k, m, **_):
    B, S, C = hidden.shape
    return hidden.new_empty((B, k + m, C)), *_decision(hidden, B, S, k)


@_fake
def _zip_qk(hidden, queries, keys, k, m, **_):
    B, S, C = hidden.shape
    return hidden.new_empty((B, k + m, C)), *_decision(hidden, B, S, k)


@_fake
def _select(keys, attn, k, m, **_):
    return _decision(keys, keys.shape[0], keys.shape[-2], k)


@_fake
def _select_qk(queries, keys, k, m, **_):
    return _decision(queries, queries.shape[0], queries.shape[2], k)


@_fake
def _merge(x, assignment, k, m, **_):
    return x.new_empty((x.shape[0], k + m, *x.shape[2:]))


@_fake
def _merge_backward(grad, assignment, k, m, **_):
    return grad.new_empty((grad.shape[0], assignment.shape[1], *grad.shape[2:]))


def _total(numbers: Sequence, cu_seqlens: Tensor):
    """The sum over all sequences of one number for all, or of one for each."""
    return numbers[0] * (cu_seqlens.shape[0] - 1) if len(numbers) == 1 else sum(numbers)


def _packed_decision(like: Tensor, T, cu_seqlens: Tensor, k) -> tuple[Tensor, Tensor, Tensor]:
    indices = like.new_empty((_total(k, cu_seqlens),), dtype=torch.int64)
    row_starts = like.new_empty((cu_seqlens.shape[0],), dtype=torch.int32)
    return indices, like.new_empty((T,), dtype=torch.int64), row_starts


@_fake
def _zip_packed(hidden, keys, cu_seqlens, k, m, **_):
    tokens = hidden.new_empty((_total(k, cu_seqlens) + _total(m, cu_seqlens), hidden.shape[1]))
    return tokens, *_packed_decision(hidden, hidden.shape[0], cu_seqlens, k)


@_fake
def _select_packed(keys, cu_seqlens, k, m, *, group=1, **_):
    return _packed_decision(keys, keys.shape[0] // group, cu_seqlens, k)


@_fake
def _merge_packed(x, assignment, cu_seqlens, k, m, **_):
    return x.new_empty((_total(k, cu_seqlens) + _total(m, cu_seqlens), *x.shape[1:]))


@_fake
def _merge_packed_backward(grad, assignment, cu_seqlens, k, m, **_):
    return grad.new_empty((assignment.shape[0], *grad.shape[1:]))
