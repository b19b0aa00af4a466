"""The operators on packed images: several of different sizes in one call, as packed encoders produce them.

Source: VisionZip (arXiv 2412.04467), Algorithms 1-3, for each image. Dtypes, layouts and errors: as in
`visionzip_ext.ops`.

The tokens of all images lie one after another in one tensor of T tokens, without padding; cu_seqlens, int32 or int64
(n + 1) on the tensors' device, says where each begins: image i is tokens cu_seqlens[i] up to cu_seqlens[i + 1]. Neither
attention nor merging crosses a boundary: an image gives the same bits whatever lies beside it, and those that `zip`,
`zip_qk`, `select`, `select_qk` and `merge` give for it.

What these functions share:

- **k, m**: dominant and contextual tokens of an image: an int for all images, or one for each (a list or another
  iterable, or an integer tensor on the CPU; `visionzip_ext.allocate_budgets` makes such lists). k = m = 0 drops an
  image; an empty one needs that. The sizes of the results come from k and m, so that nobody waits for a GPU. Under
  torch.compile pass ints or lists.
- **cu_seqlens** must rise from 0 to T, and k + m must fit into every image. The operators take int32; int64 is
  converted on its way, which costs a GPU two small launches. On the CPU, and wherever the reference
  runs, a call that breaks this raises. On a GPU, where reading it would mean waiting, the kernel ends with a
  device-side assertion that names the rule, as torch's own do for an index out of range. After one, as after torch's,
  the process's CUDA context is unusable: later calls on that GPU raise, and only a new process can use it again.
- **scores or queries**: a token's score is given, or it is the mean attention that it receives from its own image's
  tokens: softmax(scale * queries @ keys.T), of which nothing of size (S, S) exists in memory.
- **group**: g > 1 where hidden has one token for g consecutive cells of the encoder, such as behind a 2 x 2 merger (g =
  4): keys, queries, scores and lse then have g * T rows, everything else T, and cu_seqlens counts tokens. Attention is
  between cells; a token's score is the sum of its cells', its key the mean of theirs, both in float32.
- **has_cls** is False by default, unlike in `zip` and its like: encoders that pack images have no CLS. True: the first
  token of every image is CLS; its attention alone, summed over heads, makes the scores, and it is kept unless
  keep_cls is False.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from visionzip_ext._checks import check_kinds, given, integer, integers
from visionzip_ext.ops import named

__all__ = ["PackedDecision", "PackedZipResult", "merge_packed", "select_packed", "zip_packed"]

Numbers = int | Iterable[int] | Tensor
"""One for all images, or one for each."""


class PackedZipResult(NamedTuple):
    """What `zip_packed` returns.

    Attributes:
        tokens: (sum of k + m, C), hidden's dtype: of each image in turn the k kept tokens, then the m merged ones.
        indices: (sum of k,) int64: the tokens kept, as numbers within the packed tensor: ascending.
        assignment: (T,) int64: the row of `tokens` that each token went to; -1 dropped (where m = 0, and CLS for
            keep_cls=False).
        cu_seqlens: int32 (n + 1): image i is rows cu_seqlens[i] up to cu_seqlens[i + 1] of `tokens`.
    """

    tokens: Tensor
    indices: Tensor
    assignment: Tensor
    cu_seqlens: Tensor


class PackedDecision(NamedTuple):
    """What `select_packed` returns: as in `PackedZipResult`, without the tokens."""

    indices: Tensor
    assignment: Tensor
    cu_seqlens: Tensor


def _starts(cu_seqlens: Tensor) -> Tensor:
    """cu_seqlens as the operators take it, from int64 too, which cumsum makes. No number becomes another that fits."""
    if isinstance(cu_seqlens, Tensor) and cu_seqlens.dtype == torch.int64 and cu_seqlens.layout is torch.strided:
        return cu_seqlens.clamp(-1, 2**31 - 1).to(torch.int32)
    return cu_seqlens


def zip_packed(
    hidden: Tensor,
    keys: Tensor,
    cu_seqlens: Tensor,
    k: Numbers = 54,
    m: Numbers = 10,
    *,
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
) -> PackedZipResult:
    """`zip_qk` (given queries) or `zip` (given scores) of packed images. Differentiable in `hidden`.

    Args:
        hidden: (T, C), the select layer's output tokens.
        keys: (g * T, H, D), that layer's keys; with scores also (g * T, D), their mean over heads.
        cu_seqlens: int32 or int64 (n + 1), in tokens of `hidden`.
        k: dominant tokens of an image, one number or one for each image; CLS among them.
        m: contextual (merged) tokens, likewise.
        queries: (g * T, H, D), as attention sees them. Either these or `scores`.
        scores: (g * T,), finished.
        scale: with queries: the attention's factor on Q K^T; by default D ** -0.5.
        lse: with queries, optional: (H, g * T) float32, the log-sum-exp of each row, as attention over packed sequences
            returns it.
        max_seqlen: an upper bound of an image's tokens, by which a GPU's work is planned. Give it there: without it,
            the plan is for one image of all T tokens, and where those are too many (several thousand), cu_seqlens is
            read, which waits for the GPU and cannot be captured into a graph.
        group: cells to a token.
        has_cls: the first token of each image is CLS; False by default, unlike in `zip`.
        merge: "residual" or "mean", as in `zip`.
        policy: "attention" or "distinct", as in `zip`.
        keep_cls: as in `zip`; False only with has_cls=True.

    Raises:
        RuntimeError: k or m out of range, shapes that do not fit, a dtype, device, layout, `merge` or `policy` that is
            not supported, keep_cls=False where there is no CLS, scores and queries both or neither; on the CPU also
            cu_seqlens that do not rise from 0 to T, and an image that is too small for its k + m or too large for
            max_seqlen. On a GPU these end in a device-side assertion, after which the process's CUDA context is
            unusable.
    """
    optional = given(queries=queries, scores=scores, lse=lse)
    tensors = {"hidden": hidden, "keys": keys, "cu_seqlens": cu_seqlens, **optional}
    check_kinds("zip_packed", has_cls=has_cls, keep_cls=keep_cls, **tensors)
    return named(
        PackedZipResult,
        torch.ops.visionzip.zip_packed(
            hidden,
            keys,
            _starts(cu_seqlens),
            integers("zip_packed", "k", k),
            integers("zip_packed", "m", m),
            queries=queries,
            scores=scores,
            scale=scale,
            lse=lse,
            max_seqlen=None if max_seqlen is None else integer("zip_packed", "max_seqlen", max_seqlen),
            group=integer("zip_packed", "group", group),
            has_cls=has_cls,
            merge=merge,
            policy=policy,
            keep_cls=keep_cls,
        ),
    )


def select_packed(
    keys: Tensor,
    cu_seqlens: Tensor,
    k: Numbers = 54,
    m: Numbers = 10,
    *,
    queries: Tensor | None = None,
    scores: Tensor | None = None,
    scale: float | None = None,
    lse: Tensor | None = None,
    max_seqlen: int | None = None,
    group: int = 1,
    has_cls: bool = False,
    policy: str = "attention",
    keep_cls: bool = True,
) -> PackedDecision:
    """The decision of `zip_packed` alone, from the same arguments; `merge_packed` applies it to any tensor.

    Raises:
        RuntimeError: as `zip_packed`, device-side assertions included.
    """
    optional = given(queries=queries, scores=scores, lse=lse)
    tensors = {"keys": keys, "cu_seqlens": cu_seqlens, **optional}
    check_kinds("select_packed", has_cls=has_cls, keep_cls=keep_cls, **tensors)
    return named(
        PackedDecision,
        torch.ops.visionzip.select_packed(
            keys,
            _starts(cu_seqlens),
            integers("select_packed", "k", k),
            integers("select_packed", "m", m),
            queries=queries,
            scores=scores,
            scale=scale,
            lse=lse,
            max_seqlen=None if max_seqlen is None else integer("select_packed", "max_seqlen", max_seqlen),
            group=integer("select_packed", "group", group),
            has_cls=has_cls,
            policy=policy,
            keep_cls=keep_cls,
        ),
    )


def merge_packed(
    x: Tensor,
    assignment: Tensor,
    cu_seqlens: Tensor,
    k: Numbers = 54,
    m: Numbers = 10,
    *,
    merge: str = "residual",
) -> Tensor:
    """Apply a decision on packed images to another tensor. Differentiable in `x`, to any order.

    Args:
        x: (T, *).
        assignment: (T,) int64, from `zip_packed` or `select_packed` called with the same cu_seqlens, k and m.
        cu_seqlens: int32 or int64 (n + 1), in tokens of `x`: those that the decision was made with.
        k: dominant tokens of that decision.
        m: contextual tokens of that decision.
        merge: as in `zip`.

    Returns:
        (sum of k + m, *) in x's dtype.

    Raises:
        RuntimeError: as `zip_packed`, device-side assertions included; on the CPU also where `assignment` is not a
            decision for cu_seqlens, k and m.
    """
    check_kinds("merge_packed", x=x, assignment=assignment, cu_seqlens=cu_seqlens)
    k, m = integers("merge_packed", "k", k), integers("merge_packed", "m", m)
    return torch.ops.visionzip.merge_packed(x, assignment, _starts(cu_seqlens), k, m, merge=merge)
