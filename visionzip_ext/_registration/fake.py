"""Fake kernels: the outputs' shapes and dtypes, for torch.compile, torch.export and FakeTensorMode."""

from __future__ import annotations

import torch
from torch import Tensor

from visionzip_ext._checks import batch as _checks
from visionzip_ext._checks import packed as _packed_checks


def _decision(like: Tensor, B, S, k) -> tuple[Tensor, Tensor]:
    return like.new_empty((B, k), dtype=torch.int64), like.new_empty((B, S), dtype=torch.int64)


@torch.library.register_fake("visionzip::zip")
def _zip(hidden, keys, attn, k, m, *, has_cls=True, merge="residual"):
    _checks.check_zip(hidden, keys, attn, k, m, has_cls=has_cls, merge=merge)
    B, S, C = hidden.shape
    return hidden.new_empty((B, k + m, C)), *_decision(hidden, B, S, k)


@torch.library.register_fake("visionzip::zip_qk")
def _zip_qk(hidden, queries, keys, k, m, *, scale, has_cls=True, merge="residual", lse=None):
    _checks.check_zip_qk(hidden, queries, keys, k, m, has_cls=has_cls, merge=merge, lse=lse)
    B, S, C = hidden.shape
    return hidden.new_empty((B, k + m, C)), *_decision(hidden, B, S, k)


@torch.library.register_fake("visionzip::select")
def _select(keys, attn, k, m, *, has_cls=True):
    _checks.check_select(keys, attn, k, m, has_cls=has_cls)
    return _decision(keys, keys.shape[0], keys.shape[-2], k)


@torch.library.register_fake("visionzip::select_qk")
def _select_qk(queries, keys, k, m, *, scale, has_cls=True, lse=None):
    _checks.check_select_qk(queries, keys, k, m, has_cls=has_cls, lse=lse)
    return _decision(queries, queries.shape[0], queries.shape[2], k)


@torch.library.register_fake("visionzip::merge")
def _merge(x, assignment, k, m, *, merge="residual"):
    _checks.check_merge(x, assignment, k, m, merge=merge)
    return x.new_empty((x.shape[0], k + m, *x.shape[2:]))


@torch.library.register_fake("visionzip::merge_backward")
def _merge_backward(grad, assignment, k, m, *, merge="residual"):
    _checks.check_merge_backward(grad, assignment, k, m, merge=merge)
    return grad.new_empty((grad.shape[0], assignment.shape[1], *grad.shape[2:]))


def _packed_decision(like: Tensor, T, cu_seqlens: Tensor, k) -> tuple[Tensor, Tensor, Tensor]:
    n = cu_seqlens.shape[0] - 1
    indices = like.new_empty((_packed_checks.total(k, n),), dtype=torch.int64)
    return indices, like.new_empty((T,), dtype=torch.int64), like.new_empty((n + 1,), dtype=torch.int32)


def _packed_rows(cu_seqlens: Tensor, k, m):
    return _packed_checks.total_rows(k, m, cu_seqlens.shape[0] - 1)


@torch.library.register_fake("visionzip::zip_packed")
def _zip_packed(hidden, keys, cu_seqlens, k, m, **options):
    _packed_checks.check_zip_packed(hidden, keys, cu_seqlens, k, m, **options)
    tokens = hidden.new_empty((_packed_rows(cu_seqlens, k, m), hidden.shape[1]))
    return tokens, *_packed_decision(hidden, hidden.shape[0], cu_seqlens, k)


@torch.library.register_fake("visionzip::select_packed")
def _select_packed(keys, cu_seqlens, k, m, **options):
    _packed_checks.check_select_packed(keys, cu_seqlens, k, m, **options)
    return _packed_decision(keys, keys.shape[0] // options.get("group", 1), cu_seqlens, k)


@torch.library.register_fake("visionzip::merge_packed")
def _merge_packed(x, assignment, cu_seqlens, k, m, *, merge="residual"):
    _packed_checks.check_merge_packed(x, assignment, cu_seqlens, k, m, merge=merge)
    return x.new_empty((_packed_rows(cu_seqlens, k, m), *x.shape[1:]))


@torch.library.register_fake("visionzip::merge_packed_backward")
def _merge_packed_backward(grad, assignment, cu_seqlens, k, m, *, merge="residual"):
    _packed_checks.check_merge_packed_backward(grad, assignment, cu_seqlens, k, m, merge=merge)
    return grad.new_empty((assignment.shape[0], *grad.shape[1:]))
