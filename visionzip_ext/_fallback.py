"""Devices without a kernel run the reference, behind the same checks and therefore with the same words.

Where a device has kernels for a part of the problems only, the decision comes from the reference (`_select_reference`,
which the device's operators call for the others) and is carried out by the device's own `merge`.
"""

from __future__ import annotations

import torch

from visionzip_ext import _checks, reference

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


for _name, _function in (
    ("select", _select),
    ("select_qk", _select_qk),
    ("zip", _zip),
    ("zip_qk", _zip_qk),
    ("_select_reference", reference.select),
    ("_select_qk_reference", reference.select_qk),
    ("merge", _merge),
    ("merge_backward", _merge_backward),
):
    _LIBRARY.impl(_name, _function, "CompositeExplicitAutograd")
