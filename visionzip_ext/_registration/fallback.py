"""Devices without a kernel run the reference, behind the same checks and therefore with the same words.

Where a device has kernels for a part of the problems only, the decision comes from the reference (`_select_reference`,
which the device's operators call for the others) and is applied by the device's own `merge`.
"""

from __future__ import annotations

import torch

from visionzip_ext import packed_reference, reference
from visionzip_ext._checks import batch as _checks
from visionzip_ext._checks import packed as _packed_checks

_LIBRARY = torch.library.Library("visionzip", "IMPL")


def _select(keys, attn, k, m, *, has_cls=True):
    _checks.check_select(keys, attn, k, m, has_cls=has_cls)
    return reference.select(keys, attn, k, m, has_cls)


def _select_qk(queries, keys, k, m, *, scale, has_cls=True, lse=None):
    _checks.check_select_qk(queries, keys, k, m, has_cls=has_cls, lse=lse)
    return reference.select_qk(queries, keys, k, m, scale, has_cls, lse)


def _zip(hidden, keys, attn, k, m, *, has_cls=True, merge="residual"):
    _checks.check_zip(hidden, keys, attn, k, m, has_cls=has_cls, merge=merge)
    indices, assignment = reference.select(keys, attn, k, m, has_cls)
    return torch.ops.visionzip.merge(hidden, assignment, k, m, merge=merge), indices, assignment


def _zip_qk(hidden, queries, keys, k, m, *, scale, has_cls=True, merge="residual", lse=None):
    _checks.check_zip_qk(hidden, queries, keys, k, m, has_cls=has_cls, merge=merge, lse=lse)
    indices, assignment = reference.select_qk(queries, keys, k, m, scale, has_cls, lse)
    return torch.ops.visionzip.merge(hidden, assignment, k, m, merge=merge), indices, assignment


def _merge(x, assignment, k, m, *, merge="residual"):
    _checks.check_merge(x, assignment, k, m, merge=merge)
    return reference.merge(x, assignment, k, m, merge)


def _merge_backward(grad, assignment, k, m, *, merge="residual"):
    _checks.check_merge_backward(grad, assignment, k, m, merge=merge)
    return reference.merge_backward(grad, assignment, k, m, merge)


def _check_values(op, cu_seqlens, T, k, m, max_seqlen=None):
    """Of what only reading cu_seqlens shows; which the reference does anyway."""
    starts = cu_seqlens.tolist()
    each_k, each_m = (packed_reference.each_number(numbers, len(starts) - 1) for numbers in (k, m))
    _packed_checks.check_sequences(op, starts, T, each_k, each_m, max_seqlen)


def _select_packed(keys, cu_seqlens, k, m, **options):
    _packed_checks.check_select_packed(keys, cu_seqlens, k, m, **options)
    T = keys.shape[0] // options.get("group", 1)
    _check_values("select_packed", cu_seqlens, T, k, m, options.get("max_seqlen"))
    return packed_reference.select_packed(keys, cu_seqlens, k, m, **options)


def _zip_packed(hidden, keys, cu_seqlens, k, m, *, merge="residual", **options):
    _packed_checks.check_zip_packed(hidden, keys, cu_seqlens, k, m, merge=merge, **options)
    _check_values("zip_packed", cu_seqlens, hidden.shape[0], k, m, options.get("max_seqlen"))
    decision = packed_reference.select_packed(keys, cu_seqlens, k, m, **options)
    return torch.ops.visionzip.merge_packed(hidden, decision[1], cu_seqlens, k, m, merge=merge), *decision


def _merge_packed(x, assignment, cu_seqlens, k, m, *, merge="residual"):
    _packed_checks.check_merge_packed(x, assignment, cu_seqlens, k, m, merge=merge)
    _check_values("merge_packed", cu_seqlens, x.shape[0], k, m)
    return packed_reference.merge_packed(x, assignment, cu_seqlens, k, m, merge)


def _merge_packed_backward(grad, assignment, cu_seqlens, k, m, *, merge="residual"):
    _packed_checks.check_merge_packed_backward(grad, assignment, cu_seqlens, k, m, merge=merge)
    _check_values("merge_packed_backward", cu_seqlens, assignment.shape[0], k, m)
    return packed_reference.merge_packed_backward(grad, assignment, cu_seqlens, k, m, merge)


for _name, _function in (
    ("select", _select),
    ("select_qk", _select_qk),
    ("zip", _zip),
    ("zip_qk", _zip_qk),
    ("_select_reference", reference.select),
    ("_select_qk_reference", reference.select_qk),
    ("_select_packed_reference", packed_reference.select_packed),
    ("zip_packed", _zip_packed),
    ("select_packed", _select_packed),
    ("merge_packed", _merge_packed),
    ("merge_packed_backward", _merge_packed_backward),
    ("merge", _merge),
    ("merge_backward", _merge_backward),
):
    _LIBRARY.impl(_name, _function, "CompositeExplicitAutograd")
