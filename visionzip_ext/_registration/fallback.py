"""Devices without a kernel run the reference, behind the operators' own checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from visionzip_ext import _C, packed_reference, reference
from visionzip_ext._registration.checks import check

_LIBRARY = torch.library.Library("visionzip", "IMPL")


def _checked(op: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    def checked(*args: Any, **kwargs: Any) -> Any:
        check(op, args, kwargs)
        return kernel(*args, **kwargs)

    return checked


def _checked_packed(op: str, kernel: Callable[..., Any], count_tokens: Callable[..., int]) -> Callable[..., Any]:
    """Checked are the values of cu_seqlens, too: the reference reads them anyway."""

    def checked_values(*args: Any, **kwargs: Any) -> Any:
        *tensors, cu_seqlens, k, m = args
        T = count_tokens(*tensors, kwargs.get("group", 1))
        _C.check_sequences(op, cu_seqlens.tolist(), T, k, m, kwargs.get("max_seqlen"), kwargs.get("keep_cls", True))
        return kernel(*args, **kwargs)

    return _checked(op, checked_values)


def _zip_by(select: Callable[..., Any]) -> Callable[..., Any]:
    def decide_and_merge(hidden, *args, merge="residual", **options):
        indices, assignment = select(*args, **options)
        return torch.ops.visionzip.merge(hidden, assignment, *args[-2:], merge=merge), indices, assignment

    return decide_and_merge


def _decide_and_merge_packed(hidden, keys, cu_seqlens, k, m, *, merge="residual", **options):
    decision = packed_reference.select_packed(keys, cu_seqlens, k, m, **options)
    return torch.ops.visionzip.merge_packed(hidden, decision[1], cu_seqlens, k, m, merge=merge), *decision


KERNELS = {
    "select": _checked("select", reference.select),
    "select_qk": _checked("select_qk", reference.select_qk),
    "zip": _checked("zip", _zip_by(reference.select)),
    "zip_qk": _checked("zip_qk", _zip_by(reference.select_qk)),
    "merge": _checked("merge", reference.merge),
    "merge_backward": _checked("merge_backward", reference.merge_backward),
    "select_packed": _checked_packed(
        "select_packed", packed_reference.select_packed, lambda keys, group: keys.shape[0] // group
    ),
    "zip_packed": _checked_packed("zip_packed", _decide_and_merge_packed, lambda hidden, keys, group: hidden.shape[0]),
    "merge_packed": _checked_packed(
        "merge_packed", packed_reference.merge_packed, lambda x, assignment, group: x.shape[0]
    ),
    "merge_packed_backward": _checked_packed(
        "merge_packed_backward",
        packed_reference.merge_packed_backward,
        lambda grad, assignment, group: assignment.shape[0],
    ),
}
"""By operator."""

for _op, _kernel in KERNELS.items():
    _LIBRARY.impl(_op, _kernel, "CompositeExplicitAutograd")
