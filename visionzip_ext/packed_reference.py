"""The operators on packed sequences in plain PyTorch: each sequence is one image for `visionzip_ext.reference`.

Images of different sizes lie one after another in one tensor of T tokens; cu_seqlens, int32 (n + 1), says where: image
i is tokens cu_seqlens[i] up to cu_seqlens[i + 1]. Nothing crosses such a boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from visionzip_ext import reference

__all__ = ["merge_packed", "merge_packed_backward", "select_packed", "zip_packed"]


class _Sequence(NamedTuple):
    """One of the packed sequences: where its tokens are, where its rows go, and its budget."""

    tokens: slice
    rows: slice
    k: int
    m: int


def each_number(numbers: Sequence[int], n: int) -> list[int]:
    """k or m of each of n sequences, from one number for all or one for each."""
    return list(numbers) * n if len(numbers) == 1 else list(numbers)


def _sequences(starts: Sequence[int], k: Sequence[int], m: Sequence[int]) -> list[_Sequence]:
    """Those that have rows at all; `starts` are the values of cu_seqlens."""
    n = len(starts) - 1
    found, row = [], 0
    for start, stop, kept, merged in zip(starts[:-1], starts[1:], each_number(k, n), each_number(m, n), strict=True):
        if kept + merged > 0:
            found.append(_Sequence(slice(start, stop), slice(row, row + kept + merged), kept, merged))
        row += kept + merged
    return found


def _row_starts(cu_seqlens: Tensor, k: Sequence[int], m: Sequence[int]) -> Tensor:
    """The cu_seqlens of the rows."""
    n = len(cu_seqlens) - 1
    sums = accumulate((a + b for a, b in zip(each_number(k, n), each_number(m, n), strict=True)), initial=0)
    return torch.tensor(list(sums), dtype=torch.int32, device=cu_seqlens.device)


def select_packed(
    keys: Tensor,
    cu_seqlens: Tensor,
    k: Sequence[int],
    m: Sequence[int],
    queries: Tensor | None = None,
    scores: Tensor | None = None,
    scale: float | None = None,
    lse: Tensor | None = None,
    max_seqlen: int | None = None,
    group: int = 1,
    has_cls: bool = False,
    policy: str = "attention",
    keep_cls: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """The decision alone, on packed sequences: (indices, assignment, cu_seqlens of the rows).

    Args:
        keys: (g * T, H, D) or (g * T, D), `group` = g cells to a token; a token's key is the mean of its cells'.
        cu_seqlens: int32 (n + 1), in tokens: sequence i is tokens cu_seqlens[i] up to cu_seqlens[i + 1].
        k: dominant tokens, one number for all sequences or one for each.
        m: contextual tokens, likewise.
        queries: (g * T, H, D): the attention that a cell receives from the cells of its own sequence is its score.
        scores: (g * T,), finished, instead of queries.
        scale: with queries: the attention's factor on Q K^T; None: D ** -0.5.
        lse: (H, g * T), the rows' log-sum-exp.
        max_seqlen: not used: nothing is planned here.
        group: cells to a token; its score is the sum of theirs.
        has_cls: the first token of every sequence is CLS.
        policy: "attention" or "distinct".
        keep_cls: False: CLS takes no row.
    """
    T = keys.shape[0] // group
    assignment = torch.full((T,), -1, dtype=torch.int64, device=keys.device)
    indices = [assignment.new_empty(0)]
    for tokens, rows, kept, merged in _sequences(cu_seqlens.tolist(), k, m):
        cells = slice(tokens.start * group, tokens.stop * group)
        own_keys = _batch_of_one(keys[cells])
        if scores is None:
            own_lse = None if lse is None else lse[:, cells].unsqueeze(0)
            assert queries is not None  # one of the two is given
            of_cells = reference.qk_scores(_batch_of_one(queries[cells]), own_keys, scale, has_cls, own_lse)
        else:
            of_cells = reference.attention_scores(scores[cells].unsqueeze(0), has_cls)
        of_tokens = of_cells.unflatten(1, (-1, group)).sum(2)
        metric = reference.head_mean(own_keys).unflatten(1, (-1, group)).mean(2)
        chosen, row = reference.decide(of_tokens, metric, kept, merged, has_cls, policy, keep_cls)
        assignment[tokens] = torch.where(row[0] < 0, -1, row[0] + rows.start)
        indices.append(chosen[0] + tokens.start)
    return torch.cat(indices), assignment, _row_starts(cu_seqlens, k, m)


def _batch_of_one(x: Tensor) -> Tensor:
    """A sequence's queries or keys (S, H, D) as (1, H, S, D); (S, D) as (1, S, D)."""
    return (x.transpose(0, 1) if x.ndim == 3 else x).unsqueeze(0)


def merge_packed(
    x: Tensor, assignment: Tensor, cu_seqlens: Tensor, k: Sequence[int], m: Sequence[int], merge: str = "residual"
) -> Tensor:
    """Apply a decision on packed sequences to x (T, *): (sum of k + m, *) in x's dtype."""
    parts = [x[:0]]
    for tokens, rows, kept, merged in _sequences(cu_seqlens.tolist(), k, m):
        own = _own_rows(assignment[tokens], rows)
        parts.append(reference.merge(x[tokens].unsqueeze(0), own, kept, merged, merge)[0])
    return torch.cat(parts)


def merge_packed_backward(
    grad: Tensor, assignment: Tensor, cu_seqlens: Tensor, k: Sequence[int], m: Sequence[int], merge: str = "residual"
) -> Tensor:
    """The adjoint of `merge_packed`: (T, *)."""
    out = grad.new_zeros(assignment.shape[0], *grad.shape[1:])
    for tokens, rows, kept, merged in _sequences(cu_seqlens.tolist(), k, m):
        own = _own_rows(assignment[tokens], rows)
        out[tokens] = reference.merge_backward(grad[rows].unsqueeze(0), own, kept, merged, merge)[0]
    return out


def _own_rows(assignment: Tensor, rows: slice) -> Tensor:
    """A sequence's assignment, counted from its own first row, as that of a batch of one."""
    return torch.where(assignment < 0, -1, assignment - rows.start).unsqueeze(0)


def zip_packed(
    hidden: Tensor,
    keys: Tensor,
    cu_seqlens: Tensor,
    k: Sequence[int],
    m: Sequence[int],
    queries: Tensor | None = None,
    scores: Tensor | None = None,
    scale: float | None = None,
    lse: Tensor | None = None,
    max_seqlen: int | None = None,
    group: int = 1,
    has_cls: bool = False,
    merge: str = "residual",
    policy: str = "attention",
    keep_cls: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(tokens, indices, assignment, cu_seqlens of the rows) from packed hidden states (T, C); see `select_packed`."""
    rule = (has_cls, policy, keep_cls)
    decision = select_packed(keys, cu_seqlens, k, m, queries, scores, scale, lse, max_seqlen, group, *rule)
    return merge_packed(hidden, decision[1], cu_seqlens, k, m, merge), *decision
