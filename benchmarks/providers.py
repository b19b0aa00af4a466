"""Who does the work that is timed: this library, and the released implementation's recipe in PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.cases import Case, Inputs

Provider = Callable[[Case, Inputs], Tensor]
"""Computes a case's tokens (B, k + m, C) from its inputs."""


def ours(case: Case, inputs: Inputs) -> Tensor:
    """This library's operator."""
    ops, rest = torch.ops.visionzip, {"has_cls": case.has_cls, "merge": case.merge}
    if case.op == "merge":
        return ops.merge(inputs["hidden"], inputs["assignment"], case.k, case.m, merge=case.merge)
    if case.op == "zip_qk":
        hidden, queries, keys = inputs["hidden"], inputs["queries"], inputs["keys"]
        return ops.zip_qk(hidden, queries, keys, case.k, case.m, scale=case.scale, **rest)[0]
    return ops.zip(inputs["hidden"], inputs["keys"], inputs["attn"], case.k, case.m, **rest)[0]


def recipe(case: Case, inputs: Inputs) -> Tensor:
    """The released implementation's steps, eager, in the inputs' dtype.

    Where only queries and keys are given, it computes from them the attention it needs: CLS's rows, or all of them.
    """
    hidden = inputs["hidden"]
    if case.op == "merge":
        return _carry_out(hidden, inputs["assignment"], case.k, case.m)
    if case.op == "zip_qk":
        scores = _scores_of_queries(inputs["queries"], inputs["keys"], case.scale, case.has_cls)
    elif case.has_cls:
        scores = inputs["attn"][:, :, 0, 1:].sum(1)
    else:
        scores = inputs["attn"].mean((1, 2))
    metric = inputs["keys"].mean(1)
    return _compress(hidden, metric, scores, case.k, case.m, case.has_cls)


def _scores_of_queries(queries: Tensor, keys: Tensor, scale: float, has_cls: bool) -> Tensor:
    """Attention received: from CLS, summed over heads, CLS's own left out; or from all tokens, the mean."""
    if has_cls:
        attn = (queries[:, :, :1] @ keys.transpose(2, 3) * scale).softmax(-1)
        return attn[:, :, 0, 1:].sum(1)
    attn = (queries @ keys.transpose(2, 3) * scale).softmax(-1)
    return attn.mean((1, 2))


def _compress(hidden: Tensor, metric: Tensor, scores: Tensor, k: int, m: int, has_cls: bool) -> Tensor:
    """Keep k tokens by `scores`, merge the others into m by the cosine similarity of `metric`."""
    B, S, C = hidden.shape
    if has_cls:
        kept = scores.topk(k - 1, dim=1).indices + 1
        kept = torch.cat([kept.new_zeros(B, 1), kept], 1)
    else:
        kept = scores.topk(k, dim=1).indices
    remains = torch.ones(B, S, dtype=torch.bool, device=hidden.device).scatter_(1, kept, False)
    dominant = hidden.masked_select(~remains.unsqueeze(-1)).view(B, k, C)
    others = hidden.masked_select(remains.unsqueeze(-1)).view(B, S - k, C)
    metric = metric[remains].view(B, S - k, metric.shape[2])
    metric = metric / metric.norm(dim=-1, keepdim=True)

    number = torch.arange(S - k, device=hidden.device)
    targets = number[:: max(1, (S - k) // m)][:m]
    to_merge = ~torch.isin(number, targets)
    similarity = torch.bmm(metric[:, to_merge], metric[:, targets].transpose(1, 2))
    joins = torch.zeros(B, S - k - m, m, dtype=hidden.dtype, device=hidden.device)
    joins.scatter_(2, similarity.argmax(2, keepdim=True), 1)
    counts = joins.sum(1).clamp(min=1).unsqueeze(-1)
    means = torch.bmm(joins.transpose(1, 2), others[:, to_merge]) / counts
    return torch.cat([dominant, others[:, targets] + means], 1)


def _carry_out(x: Tensor, assignment: Tensor, k: int, m: int) -> Tensor:
    """The recipe's last steps where the decision is given: kept rows by mask, merged rows by a one-hot product."""
    B, S, C = x.shape
    remains = assignment >= k
    dominant = x.masked_select(~remains.unsqueeze(-1)).view(B, k, C)
    others = x.masked_select(remains.unsqueeze(-1)).view(B, S - k, C)
    target = assignment[remains].view(B, S - k) - k

    number = torch.arange(S - k, device=x.device)
    targets = number[:: max(1, (S - k) // m)][:m]
    to_merge = ~torch.isin(number, targets)
    joins = torch.zeros(B, S - k - m, m, dtype=x.dtype, device=x.device)
    joins.scatter_(2, target[:, to_merge].unsqueeze(-1), 1)
    counts = joins.sum(1).clamp(min=1).unsqueeze(-1)
    means = torch.bmm(joins.transpose(1, 2), others[:, to_merge]) / counts
    return torch.cat([dominant, others[:, targets] + means], 1)


PROVIDERS: dict[str, Provider] = {"ours": ours, "recipe": recipe}
