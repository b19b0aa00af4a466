"""What the operators on packed sequences require of their arguments, in the words of csrc/common/packed_checks.cpp."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from visionzip_ext._checks.batch import _dtype, _fits, _merge_word, _number, _rank, _same_device, _shape

_CU_RANKS = {1: "(n + 1)"}
_MOST_GROUP = 1 << 16


def _fail_unless(condition, op: str, words: str) -> None:
    torch._check(condition, lambda: f"visionzip::{op}: {words}")


def _sources(op: str, queries, scores, scale, lse) -> None:
    _fail_unless(queries is None or scores is None, op, "queries and scores are both given; expected one of them")
    given = queries is not None or scores is not None
    _fail_unless(given, op, "neither queries nor scores is given; expected one of them")
    _fail_unless(queries is None or scale is not None, op, "queries is given without scale; expected both")
    for name, x in (("scale", scale), ("lse", lse)):
        words = f"{name} is given with scores; expected it with queries only"
        _fail_unless(scores is None or x is None, op, words)


def _group(op: str, group, has_cls: bool) -> None:
    torch._check(
        1 <= group <= _MOST_GROUP,
        lambda: f"visionzip::{op}: group is {_number(group)}; expected 1 to {_MOST_GROUP}",
    )
    torch._check(
        not has_cls or group == 1,
        lambda: (
            f"visionzip::{op}: group is {_number(group)} and has_cls is true; expected group = 1 where token 0 is CLS"
        ),
    )


def _sequences(op: str, cu_seqlens: Tensor):
    """How many there are."""
    _fail_unless(cu_seqlens.shape[0] > 0, op, "cu_seqlens has shape (0); expected (n + 1)")
    return cu_seqlens.shape[0] - 1


def _numbers(op: str, name: str, numbers: Sequence, n) -> None:
    torch._check(
        len(numbers) == 1 or n == len(numbers),
        lambda: (
            f"visionzip::{op}: {name} has {len(numbers)} numbers for {_number(n)} sequences; "
            "expected one for all, or one for each"
        ),
    )
    for i, value in enumerate(numbers):
        torch._check(
            value >= 0,
            lambda i=i, value=value: f"visionzip::{op}: {name}[{i}] is {_number(value)}; expected at least 0",
        )


def _cls_is_kept(op: str, k: Sequence, m: Sequence) -> None:
    given = min(len(k), len(m)) and max(len(k), len(m))
    for i in range(given):
        kept, merged = k[0 if len(k) == 1 else i], m[0 if len(m) == 1 else i]
        torch._check(
            bool(kept > 0 or merged == 0),
            lambda i=i, merged=merged: (
                f"visionzip::{op}: sequence {i}: k = 0 and m = {_number(merged)}; "
                "expected k >= 1 (CLS is one of the k), or k = m = 0"
            ),
        )


def total(numbers: Sequence, n):
    """The sum over n sequences of one number for all, or of one for each."""
    return numbers[0] * n if len(numbers) == 1 else sum(numbers)


def total_rows(k: Sequence, m: Sequence, n):
    """The output rows of n sequences."""
    return total(k, n) + total(m, n)


def _budgets(op: str, k: Sequence, m: Sequence, n, T, has_cls: bool) -> None:
    _numbers(op, "k", k, n)
    _numbers(op, "m", m, n)
    if has_cls:
        _cls_is_kept(op, k, m)
    torch._check(
        total_rows(k, m, n) <= T,
        lambda: f"visionzip::{op}: k and m add up to more than T = {_number(T)} tokens",
    )


def _tensors(hidden, keys, queries, scores, lse) -> list[tuple[str, Tensor]]:
    named = (("hidden", hidden), ("keys", keys), ("queries", queries), ("scores", scores), ("lse", lse))
    return [(name, x) for name, x in named if x is not None]


def _ranks(op: str, queries, tensors: Sequence[tuple[str, Tensor]], cu_seqlens: Tensor) -> None:
    ranks = {
        "hidden": {2: "(T, C)"},
        "keys": {2: "(T, D)", 3: "(T, H, D)"} if queries is None else {3: "(T, H, D)"},
        "queries": {3: "(T, H, D)"},
        "scores": {1: "(T)"},
        "lse": {2: "(H, T)"},
    }
    for name, x in tensors:
        _rank(op, name, x, ranks[name])
    _rank(op, "cu_seqlens", cu_seqlens, _CU_RANKS)


def _sizes(op: str, base_name: str, base: Tensor, T, group, keys, queries, scores, lse) -> None:
    """Keys have one row a cell; queries, scores and lse are as the keys."""
    grouped = f" with group = {_number(group)}" if group > 1 else ""
    expected = (T * group, "D") if keys.ndim == 2 else (T * group, "H", "D")
    _fits(op, "keys", keys, base_name, base, expected, grouped)
    if queries is not None:
        _fits(op, "queries", queries, "keys", keys, tuple(keys.shape))
    if scores is not None:
        _fits(op, "scores", scores, "keys", keys, (keys.shape[0],))
    if lse is not None:
        _fits(op, "lse", lse, "keys", keys, (keys.shape[1], keys.shape[0]))


def _check_packed(
    op,
    hidden,
    keys,
    cu_seqlens,
    k,
    m,
    *,
    queries=None,
    scores=None,
    scale=None,
    lse=None,
    max_seqlen=None,
    group=1,
    has_cls=False,
) -> None:
    _group(op, group, has_cls)
    _sources(op, queries, scores, scale, lse)
    tensors = _tensors(hidden, keys, queries, scores, lse)
    _ranks(op, queries, tensors, cu_seqlens)
    for name, x in tensors:
        _dtype(op, name, x, *([(torch.float32,)] if name == "lse" else []))
    _dtype(op, "cu_seqlens", cu_seqlens, (torch.int32,))
    first_name, first = tensors[0]
    for name, x in (*tensors[1:], ("cu_seqlens", cu_seqlens)):
        _same_device(op, first_name, first, name, x)
    if hidden is None:
        torch._check(
            keys.shape[0] % group == 0,
            lambda: (
                f"visionzip::{op}: keys has shape {_shape(keys.shape)}; "
                f"expected a multiple of group = {_number(group)} rows"
            ),
        )
    T = keys.shape[0] // group if hidden is None else hidden.shape[0]
    _sizes(op, first_name, first, T, group, keys, queries, scores, lse)
    if max_seqlen is not None:
        torch._check(
            max_seqlen >= 0, lambda: f"visionzip::{op}: max_seqlen is {_number(max_seqlen)}; expected at least 0"
        )
    _budgets(op, k, m, _sequences(op, cu_seqlens), T, has_cls)


def check_zip_packed(hidden, keys, cu_seqlens, k, m, *, merge="residual", **options) -> None:
    _merge_word("zip_packed", merge)
    _check_packed("zip_packed", hidden, keys, cu_seqlens, k, m, **options)


def check_select_packed(keys, cu_seqlens, k, m, **options) -> None:
    _check_packed("select_packed", None, keys, cu_seqlens, k, m, **options)


def _check_carried(op: str, name: str, x: Tensor, assignment: Tensor, cu_seqlens: Tensor, k, m, merge: str) -> None:
    _merge_word(op, merge)
    torch._check(x.ndim >= 1, lambda: f"visionzip::{op}: {name} has shape (); expected (T, *)")
    _rank(op, "assignment", assignment, {1: "(T)"})
    _rank(op, "cu_seqlens", cu_seqlens, _CU_RANKS)
    _dtype(op, name, x)
    _dtype(op, "assignment", assignment, (torch.int64,))
    _dtype(op, "cu_seqlens", cu_seqlens, (torch.int32,))
    _same_device(op, name, x, "assignment", assignment)
    _same_device(op, name, x, "cu_seqlens", cu_seqlens)
    _budgets(op, k, m, _sequences(op, cu_seqlens), assignment.shape[0], False)


def check_merge_packed(x, assignment, cu_seqlens, k, m, *, merge="residual") -> None:
    op = "merge_packed"
    _check_carried(op, "x", x, assignment, cu_seqlens, k, m, merge)
    _fits(op, "assignment", assignment, "x", x, (x.shape[0],))


def check_merge_packed_backward(grad, assignment, cu_seqlens, k, m, *, merge="residual") -> None:
    op = "merge_packed_backward"
    _check_carried(op, "grad", grad, assignment, cu_seqlens, k, m, merge)
    rows = total_rows(k, m, cu_seqlens.shape[0] - 1)
    torch._check(
        grad.shape[0] == rows,
        lambda: (
            f"visionzip::{op}: grad has shape {_shape(grad.shape)}; "
            f"expected {_number(rows)} rows, the k + m of all sequences"
        ),
    )


def check_sequences(op: str, starts: Sequence[int], T: int, k: Sequence[int], m: Sequence[int], max_seqlen) -> None:
    """The values `starts` of cu_seqlens rise from 0 to T, and every sequence has room for its k and m.

    k and m have a number for each sequence.
    """
    _fail_unless(starts[0] == 0, op, f"cu_seqlens[0] is {starts[0]}; expected 0")
    for i, (start, stop) in enumerate(itertools.pairwise(starts)):
        S = stop - start
        falls = f"cu_seqlens[{i + 1}] is {stop} after {start}; expected numbers that never fall"
        _fail_unless(S >= 0, op, falls)
        long = f"sequence {i} has {S} tokens; expected at most max_seqlen = {max_seqlen}"
        _fail_unless(max_seqlen is None or max_seqlen >= S, op, long)
        small = f"sequence {i}: k = {k[i]} and m = {m[i]} do not fit S = {S} tokens; expected k + m <= {S}"
        _fail_unless(k[i] + m[i] <= S, op, small)
    _fail_unless(starts[-1] == T, op, f"cu_seqlens[{len(starts) - 1}] is {starts[-1]}; expected T = {T}")
