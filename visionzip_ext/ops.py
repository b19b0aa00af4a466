"""The operators: thin functions over `torch.ops.visionzip.*` that name their results.

Source: VisionZip (arXiv 2412.04467), Algorithms 1-3. All of them accept float32, float16 and bfloat16, each tensor its
own, in any layout (those with a unit stride in the last dimension are read in place), work under torch.compile and
torch.export, and return the same bits for the same image in any batch. Bad input raises RuntimeError and names the
argument, what was expected and what came.

By default token 0 is CLS (`has_cls=True`), as in the paper's CLIP. **Encoders without CLS, such as SigLIP, need
`has_cls=False`**: nothing in the tensors shows which it is, and with the wrong one a patch is taken for CLS. (The
operators on packed images, `visionzip_ext.packed`, have the other default: encoders that pack images have no CLS.)
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from visionzip_ext._checks import check_kinds, given, integer

__all__ = ["Decision", "ZipResult", "merge", "select", "select_qk", "zip", "zip_qk"]


class ZipResult(NamedTuple):
    """What `zip` and `zip_qk` return.

    Attributes:
        tokens: (B, k + m, C), hidden's dtype: the k kept tokens in their order (CLS first where there is one), then the
            m merged ones.
        indices: (B, k) int64, ascending: the tokens kept.
        assignment: (B, S) int64: the row of `tokens` that each input token went to: 0..k-1 kept, k..k+m-1 merged, -1
            dropped (all that is not kept for m = 0; CLS for keep_cls=False).
    """

    tokens: Tensor
    indices: Tensor
    assignment: Tensor


class Decision(NamedTuple):
    """What `select` and `select_qk` return: `indices` and `assignment` as in `ZipResult`."""

    indices: Tensor
    assignment: Tensor


Named = TypeVar("Named", bound=NamedTuple)


def named(kind: type[Named], results: Any) -> Named:
    """An operator's results by their names; torch.fx traces with one proxy for all of them, which has no length."""
    if isinstance(results, torch.fx.Proxy):
        results = [results[i] for i in range(len(kind._fields))]  # type: ignore[index]
    return kind(*results)


def zip(
    hidden: Tensor,
    keys: Tensor,
    attn: Tensor,
    k: int = 54,
    m: int = 10,
    *,
    has_cls: bool = True,
    merge: str = "residual",
    policy: str = "attention",
    keep_cls: bool = True,
) -> ZipResult:
    """Keep the k tokens that are attended to most, merge the others into m: one pass from scores to merged rows.

    Differentiable in `hidden`.

    Args:
        hidden: (B, S, C), the select layer's output tokens.
        keys: (B, S, D), or (B, H, S, D) of which the mean over heads is taken: that layer's keys (section 3.3: the
            similarity that merging goes by).
        attn: softmaxed attention (B, H, S, S); or its CLS rows, one a head (B, H, S); or finished scores (B, S).
        k: dominant tokens, CLS among them: an integer (no bool, no float). The defaults, 54 + 10, are the paper's for
            LLaVA-1.5 at 64 tokens.
        m: contextual (merged) tokens.
        has_cls: True, the default: token 0 is CLS; scores are its attention, summed over heads, and it is always kept.
            False, for encoders without CLS such as SigLIP: scores are the mean attention that a token receives from
            all tokens (section 3.2). Nothing in the tensors shows which it is.
        merge: "residual", the released implementation: target + mean of the tokens assigned to it; or "mean", the
            paper's words: the mean over the target and the tokens assigned to it.
        policy: "attention", the paper's: the highest scores are kept. "distinct", which is not in the paper: tokens are
            kept one after another, each the one of highest score * (1 - c), where c is the highest cosine similarity of
            its key to that of a patch kept before, at least 0 (in spirit a greedy MAP of a determinantal point process,
            Chen et al., arXiv 1709.05135). It keeps more of an image where k is small, most with m = 0.
            O(k * S * D).
        keep_cls: False: CLS scores the patches but takes no row, so that k patches are kept; its assignment is -1, and
            k + m is at most S - 1. Only with has_cls=True.

    Raises:
        RuntimeError: k or m out of range, shapes that do not fit, a dtype, device, layout, `merge` or `policy` that is
            not supported, keep_cls=False where there is no CLS.
    """
    check_kinds("zip", hidden=hidden, keys=keys, attn=attn, has_cls=has_cls, keep_cls=keep_cls)
    k, m = integer("zip", "k", k), integer("zip", "m", m)
    rule = {"has_cls": has_cls, "policy": policy, "keep_cls": keep_cls}
    return named(ZipResult, torch.ops.visionzip.zip(hidden, keys, attn, k, m, merge=merge, **rule))


def zip_qk(
    hidden: Tensor,
    queries: Tensor,
    keys: Tensor,
    k: int = 54,
    m: int = 10,
    *,
    scale: float | None = None,
    has_cls: bool = True,
    merge: str = "residual",
    lse: Tensor | None = None,
    policy: str = "attention",
    keep_cls: bool = True,
) -> ZipResult:
    """`zip` from the layer's queries and keys, the softmax inside: no (S, S) matrix ever exists.

    So the encoder may run flash or SDPA attention. Memory O(S).

    Args:
        hidden: (B, S, C), the select layer's output tokens.
        queries: (B, H, S, D), as attention sees them (after rotary embedding and normalisation).
        keys: (B, H, S, D), likewise.
        k: dominant tokens, CLS among them.
        m: contextual (merged) tokens.
        scale: the attention's factor on Q K^T; by default D ** -0.5.
        has_cls: as in `zip`; True by default, so pass False for encoders without CLS.
        merge: as in `zip`.
        lse: (B, H, S) float32, the log-sum-exp of each row of scale * Q K^T, where attention already computed it.
        policy: as in `zip`.
        keep_cls: as in `zip`.

    Raises:
        RuntimeError: as `zip`.
    """
    tensors = {"hidden": hidden, "queries": queries, "keys": keys, **given(lse=lse)}
    check_kinds("zip_qk", has_cls=has_cls, keep_cls=keep_cls, **tensors)
    k, m = integer("zip_qk", "k", k), integer("zip_qk", "m", m)
    rule = {"has_cls": has_cls, "policy": policy, "keep_cls": keep_cls}
    return named(
        ZipResult,
        torch.ops.visionzip.zip_qk(hidden, queries, keys, k, m, scale=scale, merge=merge, lse=lse, **rule),
    )


def select(
    keys: Tensor,
    attn: Tensor,
    k: int = 54,
    m: int = 10,
    *,
    has_cls: bool = True,
    policy: str = "attention",
    keep_cls: bool = True,
) -> Decision:
    """The decision of `zip` alone; `merge` applies it to any tensor.

    Args:
        keys: as in `zip`.
        attn: as in `zip`.
        k: dominant tokens, CLS among them.
        m: contextual (merged) tokens.
        has_cls: as in `zip`; True by default, so pass False for encoders without CLS.
        policy: as in `zip`.
        keep_cls: as in `zip`.

    Raises:
        RuntimeError: as `zip`.
    """
    check_kinds("select", keys=keys, attn=attn, has_cls=has_cls, keep_cls=keep_cls)
    k, m = integer("select", "k", k), integer("select", "m", m)
    rule = {"has_cls": has_cls, "policy": policy, "keep_cls": keep_cls}
    return named(Decision, torch.ops.visionzip.select(keys, attn, k, m, **rule))


def select_qk(
    queries: Tensor,
    keys: Tensor,
    k: int = 54,
    m: int = 10,
    *,
    scale: float | None = None,
    has_cls: bool = True,
    lse: Tensor | None = None,
    policy: str = "attention",
    keep_cls: bool = True,
) -> Decision:
    """The decision of `zip_qk` alone; `merge` applies it to any tensor.

    Args:
        queries: as in `zip_qk`.
        keys: as in `zip_qk`.
        k: dominant tokens, CLS among them.
        m: contextual (merged) tokens.
        scale: as in `zip_qk`.
        has_cls: as in `zip`; True by default, so pass False for encoders without CLS.
        lse: as in `zip_qk`.
        policy: as in `zip`.
        keep_cls: as in `zip`.

    Raises:
        RuntimeError: as `zip`.
    """
    check_kinds("select_qk", queries=queries, keys=keys, has_cls=has_cls, keep_cls=keep_cls, **given(lse=lse))
    k, m = integer("select_qk", "k", k), integer("select_qk", "m", m)
    rule = {"has_cls": has_cls, "policy": policy, "keep_cls": keep_cls}
    return named(Decision, torch.ops.visionzip.select_qk(queries, keys, k, m, scale=scale, lse=lse, **rule))


def merge(x: Tensor, assignment: Tensor, k: int = 54, m: int = 10, *, merge: str = "residual") -> Tensor:
    """Apply a decision to another tensor: deep-stack features, positions, a second encoder's windows.

    Differentiable in `x`, to any order.

    Args:
        x: (B, S, *).
        assignment: (B, S) int64, from one of the other operators called with the same k and m.
        k: dominant tokens of that decision.
        m: contextual tokens of that decision.
        merge: as in `zip`.

    Returns:
        (B, k + m, *) in x's dtype.

    Raises:
        RuntimeError: as `zip`; on the CPU also where `assignment` is not a decision for k and m.
    """
    check_kinds("merge", x=x, assignment=assignment)
    k, m = integer("merge", "k", k), integer("merge", "m", m)
    return torch.ops.visionzip.merge(x, assignment, k, m, merge=merge)
