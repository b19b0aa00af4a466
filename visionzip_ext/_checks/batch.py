"""What every operator requires of its arguments, in the words of csrc/common/checks.cpp.

The compiled operators check in C++; the reference path and the fake kernels (torch.compile, torch.export) check here. A
test holds the two to the same words. `torch._check` is used throughout, because it accepts symbolic sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.overrides import is_tensor_like

_FLOATING = (torch.float32, torch.float16, torch.bfloat16)
_MERGE_WORDS = ("residual", "mean")
_QK_RANKS = {4: "(B, H, S, D)"}
_KEYS_RANKS = {3: "(B, S, D)", 4: "(B, H, S, D)"}
_ATTN_RANKS = {2: "(B, S)", 3: "(B, H, S)", 4: "(B, H, S, S)"}
_HIDDEN_RANKS = {3: "(B, S, C)"}


def _number(size) -> str:
    """A symbolic size as the number that it stands for, so that a compiled graph fails with the eager words."""
    try:
        return size if isinstance(size, str) else str(int(size))
    except GuardOnDataDependentSymNode:
        return str(size)


def _shape(sizes: Sequence) -> str:
    return f"({', '.join(_number(size) for size in sizes)})"


def _one_of(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _merge_word(op: str, merge: str) -> None:
    torch._check(merge in _MERGE_WORDS, lambda: f'visionzip::{op}: merge is "{merge}"; expected "residual" or "mean"')


def _rank(op: str, name: str, x: Tensor, ranks: dict[int, str]) -> None:
    torch._check(
        x.ndim in ranks,
        lambda: f"visionzip::{op}: {name} has shape {_shape(x.shape)}; expected {_one_of(list(ranks.values()))}",
    )


def _dtype(op: str, name: str, x: Tensor, allowed: Sequence[torch.dtype] = _FLOATING) -> None:
    torch._check(
        x.dtype in allowed,
        lambda: (
            f"visionzip::{op}: {name} has dtype {_dtype_name(x.dtype)}; "
            f"expected {_one_of([_dtype_name(dtype) for dtype in allowed])}"
        ),
    )


def _same_device(op: str, first_name: str, first: Tensor, name: str, x: Tensor) -> None:
    torch._check(
        x.device == first.device,
        lambda: (
            f"visionzip::{op}: {name} is on {x.device} but {first_name} is on {first.device}; "
            "expected all tensors on the same device"
        ),
    )


def _fits(op: str, name: str, x: Tensor, base_name: str, base: Tensor, expected: Sequence, suffix: str = "") -> None:
    """x's sizes equal `expected`, in which a string stands for any size of at least one."""
    for size, want in zip(x.shape, expected, strict=True):
        torch._check(
            size > 0 if want == "H" else True if isinstance(want, str) else size == want,
            lambda: (
                f"visionzip::{op}: {name} has shape {_shape(x.shape)}, which does not fit "
                f"{base_name} of shape {_shape(base.shape)}; expected {_shape(expected)}{suffix}"
            ),
        )


def _budget(op: str, k, m, tokens, has_cls: bool) -> None:
    least = 1 if has_cls else 0

    def words() -> str:
        cls = " (CLS is one of the k)" if has_cls else ""
        return (
            f"visionzip::{op}: k = {_number(k)} and m = {_number(m)} do not fit S = {_number(tokens)} tokens; "
            f"expected k >= {least}, m >= 0 and 1 <= k + m <= {_number(tokens)}{cls}"
        )

    torch._check(k >= least, words)
    torch._check(m >= 0, words)
    torch._check(k + m >= 1, words)
    torch._check(k + m <= tokens, words)


def _keys_like(op: str, base_name: str, base: Tensor, keys: Tensor, B, S) -> None:
    _fits(op, "keys", keys, base_name, base, (B, S, "D") if keys.ndim == 3 else (B, "H", S, "D"))


def _attn_like(op: str, base_name: str, base: Tensor, attn: Tensor, B, S) -> None:
    expected = {2: (B, S), 3: (B, "H", S), 4: (B, "H", S, S)}[attn.ndim]
    _fits(op, "attn", attn, base_name, base, expected)


def _lse_like(op: str, queries: Tensor, lse: Tensor | None) -> None:
    if lse is not None:
        _fits(op, "lse", lse, "queries", queries, tuple(queries.shape[:3]))


def _kind(x: object) -> str:
    """What came in the place of a strided tensor."""
    if not isinstance(x, Tensor):
        return "None" if x is None else f"of type {type(x).__name__}"
    layout = str(x.layout).removeprefix("torch.").removeprefix("_")
    return "a nested tensor" if x.is_nested else f"a tensor of layout {layout}"


def check_kinds(op: str, *, has_cls: bool = True, **tensors: Tensor) -> None:
    """What the functions require before they call an operator, whose schema lets other layouts and None through."""
    for name, x in tensors.items():
        if isinstance(x, Tensor) and x.layout is torch.strided and not x.is_nested:
            continue
        # What torch.fx traces with is none, but may stand for one.
        if isinstance(x, Tensor) or not is_tensor_like(x):
            raise RuntimeError(f"visionzip::{op}: {name} is {_kind(x)}; expected a strided tensor")
    if not isinstance(has_cls, (bool, torch.SymBool)):
        raise RuntimeError(f"visionzip::{op}: has_cls is {has_cls!r}; expected True or False")


def given(**tensors: Tensor | None) -> dict[str, Tensor]:
    """Of optional tensors those that are there."""
    return {name: x for name, x in tensors.items() if x is not None}


def check_zip(hidden: Tensor, keys: Tensor, attn: Tensor, k, m, *, has_cls: bool, merge: str) -> None:
    op = "zip"
    _merge_word(op, merge)
    _rank(op, "hidden", hidden, _HIDDEN_RANKS)
    _rank(op, "keys", keys, _KEYS_RANKS)
    _rank(op, "attn", attn, _ATTN_RANKS)
    for name, x in (("hidden", hidden), ("keys", keys), ("attn", attn)):
        _dtype(op, name, x)
    for name, x in (("keys", keys), ("attn", attn)):
        _same_device(op, "hidden", hidden, name, x)
    B, S, _ = hidden.shape
    _keys_like(op, "hidden", hidden, keys, B, S)
    _attn_like(op, "hidden", hidden, attn, B, S)
    _budget(op, k, m, S, has_cls)


def check_select(keys: Tensor, attn: Tensor, k, m, *, has_cls: bool) -> None:
    op = "select"
    _rank(op, "keys", keys, _KEYS_RANKS)
    _rank(op, "attn", attn, _ATTN_RANKS)
    for name, x in (("keys", keys), ("attn", attn)):
        _dtype(op, name, x)
    _same_device(op, "keys", keys, "attn", attn)
    B, S = keys.shape[0], keys.shape[-2]
    _keys_like(op, "keys", keys, keys, B, S)
    _attn_like(op, "keys", keys, attn, B, S)
    _budget(op, k, m, S, has_cls)


def _check_qk(op: str, hidden: Tensor | None, queries: Tensor, keys: Tensor, k, m, has_cls: bool, lse) -> None:
    tensors = [("queries", queries), ("keys", keys)]
    if hidden is not None:
        _rank(op, "hidden", hidden, _HIDDEN_RANKS)
        tensors.insert(0, ("hidden", hidden))
    _rank(op, "queries", queries, _QK_RANKS)
    _rank(op, "keys", keys, _QK_RANKS)
    if lse is not None:
        _rank(op, "lse", lse, {3: "(B, H, S)"})
    for name, x in tensors:
        _dtype(op, name, x)
    if lse is not None:
        _dtype(op, "lse", lse, (torch.float32,))
        tensors.append(("lse", lse))
    first_name, first = tensors[0]
    for name, x in tensors[1:]:
        _same_device(op, first_name, first, name, x)
    B, S = (queries.shape[0], queries.shape[2]) if hidden is None else hidden.shape[:2]
    _fits(op, "queries", queries, first_name, first, (B, "H", S, "D"))
    _fits(op, "keys", keys, "queries", queries, tuple(queries.shape))
    _lse_like(op, queries, lse)
    _budget(op, k, m, S, has_cls)


def check_zip_qk(
    hidden: Tensor, queries: Tensor, keys: Tensor, k, m, *, has_cls: bool, merge: str, lse: Tensor | None
) -> None:
    _merge_word("zip_qk", merge)
    _check_qk("zip_qk", hidden, queries, keys, k, m, has_cls, lse)


def check_select_qk(queries: Tensor, keys: Tensor, k, m, *, has_cls: bool, lse: Tensor | None) -> None:
    _check_qk("select_qk", None, queries, keys, k, m, has_cls, lse)


def _check_carried(op: str, name: str, x: Tensor, assignment: Tensor, k, m, merge: str) -> None:
    _merge_word(op, merge)
    torch._check(x.ndim >= 2, lambda: f"visionzip::{op}: {name} has shape {_shape(x.shape)}; expected (B, S, *)")
    _rank(op, "assignment", assignment, {2: "(B, S)"})
    _dtype(op, name, x)
    _dtype(op, "assignment", assignment, (torch.int64,))
    _same_device(op, name, x, "assignment", assignment)


def check_merge(x: Tensor, assignment: Tensor, k, m, *, merge: str) -> None:
    _check_carried("merge", "x", x, assignment, k, m, merge)
    _fits("merge", "assignment", assignment, "x", x, tuple(x.shape[:2]))
    _budget("merge", k, m, assignment.shape[1], False)


def check_merge_backward(grad: Tensor, assignment: Tensor, k, m, *, merge: str) -> None:
    op = "merge_backward"
    _check_carried(op, "grad", grad, assignment, k, m, merge)
    _budget(op, k, m, assignment.shape[1], False)
    rows = (assignment.shape[0], k + m, *grad.shape[2:])
    _fits(op, "grad", grad, "assignment", assignment, rows)
