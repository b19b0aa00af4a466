"""VisionZip in plain PyTorch: the definition that every kernel is tested against.

It follows the paper (arXiv 2412.04467, Algorithms 1-3) with the behaviour of its released implementation, step by
step: score, keep, targets, assign, merge. It takes any floating dtype (float64 inputs are computed in float64,
everything else in float32) and any device, and also serves the devices that have no kernel of ours.

Symbols: B images, S tokens of an image (CLS included where there is one), C channels of a token, H heads, D channels of
a head's key, k tokens kept as they are ("dominant"), m merged tokens ("contextual"), R tokens that remain: S - k, or
S - 1 - k where CLS takes no row.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "assign",
    "attention_scores",
    "decide",
    "head_mean",
    "keep",
    "keep_distinct",
    "merge",
    "merge_backward",
    "qk_scores",
    "select",
    "select_qk",
    "zip",
    "zip_qk",
]

_QUERY_CHUNK = 128  # rows of softmax(Q K^T) that exist at a time in `qk_scores`


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _widen(x: Tensor) -> Tensor:
    return x.to(_compute_dtype(x.dtype))


def attention_scores(attn: Tensor, has_cls: bool) -> Tensor:
    """How much each token is attended to: (B, S), from given attention.

    Args:
        attn: softmaxed attention (B, H, S, S); the rows that count, one a head, (B, H, S); or finished scores (B, S).
        has_cls: token 0 is CLS: its row is summed over heads. Without it: the mean over heads and rows.
    """
    attn = _widen(attn[:, :, 0] if has_cls and attn.ndim == 4 else attn)
    if attn.ndim == 4:
        attn = attn.mean(2)
    if attn.ndim == 3:
        attn = attn.sum(1) if has_cls else attn.mean(1)
    return attn


def qk_scores(queries: Tensor, keys: Tensor, scale: float | None, has_cls: bool, lse: Tensor | None = None) -> Tensor:
    """The same scores (B, S) from queries and keys (B, H, S, D); no (S, S) matrix exists, only chunks of its rows.

    Args:
        scale: the attention's factor on Q K^T; None: D ** -0.5.
        lse: (B, H, S), the rows' log-sum-exp of scale * Q K^T where attention already computed it.
    """
    scale = max(queries.shape[-1], 1) ** -0.5 if scale is None else scale
    rows = 1 if has_cls else queries.shape[2]
    keys_t = _widen(keys).transpose(-1, -2)
    per_head = keys_t.new_zeros(*keys.shape[:3])
    for start in range(0, rows, _QUERY_CHUNK):
        chunk = slice(start, min(start + _QUERY_CHUNK, rows))
        logits = (_widen(queries[:, :, chunk]) @ keys_t) * scale
        attn = torch.softmax(logits, -1) if lse is None else torch.exp(logits - lse[:, :, chunk, None])
        per_head += attn.sum(2)
    return per_head.sum(1) if has_cls else per_head.mean(1) / rows


def head_mean(keys: Tensor) -> Tensor:
    """Keys (B, H, S, D) or (B, S, D) -> the metric (B, S, D): the mean over heads."""
    return _widen(keys).mean(1) if keys.ndim == 4 else _widen(keys)


def keep(scores: Tensor, k: int, has_cls: bool, keep_cls: bool = True) -> Tensor:
    """The k tokens kept: int64 (B, k), ascending.

    CLS first where there is one, unless it takes no row, then the highest scores. Equal scores: the lower index wins.
    NaN ranks below every number.
    """
    if not keep_cls:
        return keep(scores[:, 1:], k, False) + 1
    lowest, highest = float("-inf"), float("inf")
    nan = scores.isnan()
    scores = scores.masked_fill(nan, lowest)
    if has_cls:
        scores, nan = scores.clone(), nan.clone()
        scores[:, 0] = highest
        nan[:, 0] = False
    order = scores.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, nan.gather(1, order).to(torch.uint8).argsort(dim=1, stable=True))
    return order[:, :k].sort(1).values


def _first_best(products: Tensor, taken: Tensor) -> Tensor:
    """Of each row (B, n), of what is not taken, the number (B,) of the highest product, or of the first NaN."""
    number = ~(products.isnan() | taken)
    highest = products.masked_fill(~number, float("-inf")).amax(1, keepdim=True)
    best = torch.where(number.any(1, keepdim=True), number & (products == highest), ~taken)
    return best.to(torch.uint8).argmax(1)


def _unit(metric: Tensor) -> Tensor:
    """Vectors (B, S, D) of length one; zero for one that is zero or has a channel that is infinite or NaN.

    Scaled before squaring, so that the length of a very long or very short one neither overflows nor vanishes.
    """
    has_direction = metric.isfinite().all(-1, keepdim=True) & (metric != 0).any(-1, keepdim=True)
    metric = torch.where(has_direction, metric, 1)
    if metric.shape[2]:
        metric = metric / metric.abs().amax(-1, keepdim=True)
    return torch.where(has_direction, metric / metric.norm(dim=-1, keepdim=True), 0)


def keep_distinct(scores: Tensor, metric: Tensor, k: int, has_cls: bool, keep_cls: bool = True) -> Tensor:
    """The k tokens that the policy "distinct" keeps: int64 (B, k), ascending.

    CLS where there is one, unless it takes no row, then patches one after another: the one of highest score * (1 - c),
    where c is the highest cosine similarity of its `metric` (B, S, D) to that of a patch kept before, at least 0 and at
    most 1. Equal products: the lower index wins. NaN ranks below every number.
    """
    B = len(scores)
    first = 1 if has_cls else 0
    scores, units = scores[:, first:], _unit(metric[:, first:])
    resemblance, taken = torch.zeros_like(scores), torch.zeros_like(scores, dtype=torch.bool)
    kept = [torch.zeros(B, 1 if has_cls and keep_cls else 0, dtype=torch.int64, device=scores.device)]
    for _ in range(k - kept[0].shape[1]):
        best = _first_best(scores * (1 - resemblance), taken).unsqueeze(1)
        kept.append(best + first)
        taken = taken.scatter(1, best, True)
        unit = units.gather(1, best.unsqueeze(2).expand(B, 1, units.shape[2]))
        resemblance = torch.maximum(resemblance, (units * unit).sum(-1)).clamp(max=1)
    return torch.cat(kept, 1).sort(1).values


def _target_of_rank(rank: Tensor, remaining: Tensor, m: int) -> Tensor:
    """For the remaining token number `rank`, of so many in its image: the number of the target that it is, or -1."""
    step = (remaining // m).clamp(min=1)
    target = rank // step
    return torch.where((rank % step == 0) & (target < m), target, -1)


def assign(metric: Tensor, indices: Tensor, k: int, m: int, keep_cls: bool = True) -> Tensor:
    """Each token's output row: int64 (B, S); 0..k-1 kept, k..k+m-1 merged, -1 dropped (for m = 0; CLS without a row).

    The targets are the remaining tokens number 0, step, 2 * step, ... with step = max(1, R // m). Every other remaining
    token joins the target of highest cosine similarity of `metric` (B, S, D); equal: the lower target. A target of
    length zero has similarity 0; NaN is below every number. A token's own length cannot change its argmax, so only the
    targets' lengths are taken out.
    """
    B, S, _ = metric.shape
    rows = torch.arange(k, device=metric.device).expand(B, k)
    assignment = torch.full((B, S), -1, dtype=torch.int64, device=metric.device).scatter(1, indices, rows)
    if m == 0:
        return assignment
    remains = assignment < 0
    if not keep_cls:
        remains[:, 0] = False
    rank = remains.cumsum(1) - 1
    target = torch.where(remains, _target_of_rank(rank, remains.sum(1, keepdim=True), m), -1)
    tokens_of_targets = target.masked_fill(target < 0, m).argsort(dim=1, stable=True)[:, :m]

    directions = metric.gather(1, tokens_of_targets.unsqueeze(-1).expand(B, m, metric.shape[2]))
    # Scaled before squaring, so that the length of a very long or very short key neither overflows nor vanishes.
    largest = directions.abs().amax(-1, keepdim=True) if metric.shape[2] else directions.new_zeros(B, m, 1)
    directions = directions / torch.where(largest > 0, largest, 1)
    length = directions.norm(dim=-1, keepdim=True)
    directions = directions / torch.where(length > 0, length, 1)

    # A target at a time: a matrix product may round the same numbers differently in different columns, and equal
    # targets would no longer be equal.
    similarity = torch.stack([(metric * directions[:, t : t + 1]).sum(-1) for t in range(m)], -1)
    nan = similarity.isnan()
    similarity = similarity.masked_fill(nan, float("-inf"))
    best = (similarity == similarity.amax(-1, keepdim=True)) & ~nan
    number = torch.arange(m, device=metric.device)
    nearest = torch.where(best, number, m).amin(-1)
    nearest = torch.where(nearest < m, nearest, 0)  # NaN throughout: all equal, so the lowest
    joined = torch.where(target >= 0, target, nearest)
    return torch.where(remains, k + joined, assignment)


def decide(
    scores: Tensor, metric: Tensor, k: int, m: int, has_cls: bool, policy: str, keep_cls: bool
) -> tuple[Tensor, Tensor]:
    """(indices, assignment) from scores (B, S) and the metric (B, S, D)."""
    if policy == "distinct":
        indices = keep_distinct(scores, metric, k, has_cls, keep_cls)
    else:
        indices = keep(scores, k, has_cls, keep_cls)
    return indices, assign(metric, indices, k, m, keep_cls)


def _roles(assignment: Tensor, k: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each token (B, S): is it its row's representative, is it averaged into its row; and each row's count."""
    B = len(assignment)
    remains = assignment >= k
    rank = remains.cumsum(1) - 1
    represents = assignment >= 0
    if m:
        represents = represents & (~remains | (_target_of_rank(rank, remains.sum(1, keepdim=True), m) >= 0))
    averaged = remains & ~represents
    counts = torch.zeros(B, k + m, dtype=torch.int64, device=assignment.device)
    counts.scatter_add_(1, assignment.clamp(min=0), averaged.to(torch.int64))
    return represents, averaged, counts


def merge(x: Tensor, assignment: Tensor, k: int, m: int, merge: str = "residual") -> Tensor:
    """Apply a decision to x (B, S, *): (B, k + m, *) in x's dtype.

    "residual", the released implementation: target + mean of the tokens assigned to it. "mean", the paper's words: the
    mean over the target and the tokens assigned to it.
    """
    B, S = assignment.shape
    represents, averaged, counts = _roles(assignment, k, m)
    flat = _widen(x).reshape(B, S, x.shape[2:].numel())
    row = assignment.clamp(min=0).unsqueeze(-1).expand_as(flat)

    def rows_of(mask: Tensor) -> Tensor:
        part = torch.where(mask.unsqueeze(-1), flat, 0)
        return flat.new_zeros(B, k + m, flat.shape[2]).scatter_add_(1, row, part)

    counts = counts.unsqueeze(-1)
    if merge == "mean":
        out = (rows_of(represents) + rows_of(averaged)) / (counts + 1)
    else:
        out = rows_of(represents) + rows_of(averaged) / counts.clamp(min=1)
    return out.to(x.dtype).reshape(B, k + m, *x.shape[2:])


def merge_backward(grad: Tensor, assignment: Tensor, k: int, m: int, merge: str = "residual") -> Tensor:
    """The adjoint of `merge`: each input token (B, S, *) receives its row's gradient times its weight in that row."""
    B, S = assignment.shape
    represents, averaged, counts = _roles(assignment, k, m)
    flat = _widen(grad).reshape(B, k + m, grad.shape[2:].numel())
    row = assignment.clamp(min=0)
    count = counts.gather(1, row).to(flat.dtype)
    weight_of_average = 1 / (count + 1) if merge == "mean" else 1 / count.clamp(min=1)
    weight_of_representative = 1 / (count + 1) if merge == "mean" else torch.ones_like(count)
    weight = torch.where(represents, weight_of_representative, torch.where(averaged, weight_of_average, 0))
    rows = flat.gather(1, row.unsqueeze(-1).expand(B, S, flat.shape[2]))
    out = torch.where((weight > 0).unsqueeze(-1), rows * weight.unsqueeze(-1), 0)
    return out.to(grad.dtype).reshape(B, S, *grad.shape[2:]).contiguous()


def select(
    keys: Tensor,
    attn: Tensor,
    k: int,
    m: int,
    has_cls: bool = True,
    policy: str = "attention",
    keep_cls: bool = True,
) -> tuple[Tensor, Tensor]:
    """The decision alone, from given attention: (indices, assignment)."""
    return decide(attention_scores(attn, has_cls), head_mean(keys), k, m, has_cls, policy, keep_cls)


def select_qk(
    queries: Tensor,
    keys: Tensor,
    k: int,
    m: int,
    scale: float | None = None,
    has_cls: bool = True,
    lse: Tensor | None = None,
    policy: str = "attention",
    keep_cls: bool = True,
) -> tuple[Tensor, Tensor]:
    """The decision alone, from queries and keys: (indices, assignment)."""
    scores = qk_scores(queries, keys, scale, has_cls, lse)
    return decide(scores, head_mean(keys), k, m, has_cls, policy, keep_cls)


def zip(
    hidden: Tensor,
    keys: Tensor,
    attn: Tensor,
    k: int,
    m: int,
    has_cls: bool = True,
    merge: str = "residual",
    policy: str = "attention",
    keep_cls: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, indices, assignment) from hidden states (B, S, C), keys and given attention."""
    indices, assignment = select(keys, attn, k, m, has_cls, policy, keep_cls)
    return _merge(hidden, assignment, k, m, merge), indices, assignment


def zip_qk(
    hidden: Tensor,
    queries: Tensor,
    keys: Tensor,
    k: int,
    m: int,
    scale: float | None = None,
    has_cls: bool = True,
    merge: str = "residual",
    lse: Tensor | None = None,
    policy: str = "attention",
    keep_cls: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, indices, assignment) from hidden states (B, S, C), queries and keys."""
    indices, assignment = select_qk(queries, keys, k, m, scale, has_cls, lse, policy, keep_cls)
    return _merge(hidden, assignment, k, m, merge), indices, assignment


_merge = merge  # `zip` and `zip_qk` have a parameter of that name
