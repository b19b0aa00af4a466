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
    ops, options = torch.ops.visionzip, {"has_cls": case.has_cls, "merge": case.merge}
    if case.op == "merge":
        return ops.merge(inputs["hidden"], inputs["assignment"], case.k, case.m, merge=case.merge)
    if case.op == "zip_qk":
        hidden, queries, keys = inputs["hidden"], inputs["queries"], inputs["keys"]
        return ops.zip_qk(hidden, queries, keys, case.k, case.m, scale=case.scale, **options)[0]
    return ops.zip(inputs["hidden"], inputs["keys"], inputs["attn"], case.k, case.m, **options)[0]


def recipe(case: Case, inputs: Inputs) -> Tensor:
    """The released implementation's steps, eager, in the inputs' dtype.

    Where only queries and keys are given, it computes from them the attention that it needs: CLS's rows, or all. Where
    the decision is given, it does what is left of its steps.
    """
    hidden = inputs["hidden"]
    if case.op == "merge":
        return _carry_out(hidden, inputs["assignment"], case.k, case.m)
    if case.op == "zip":
        attn = inputs["attn"]
    else:
        queries = inputs["queries"][:, :, :1] if case.has_cls else inputs["queries"]
        attn = ((queries * case.scale) @ inputs["keys"].transpose(2, 3)).softmax(-1)
    scores = attn[:, :, 0, 1:].sum(1) if case.has_cls else attn.mean((1, 2))
    return _compress(hidden, inputs["keys"].mean(1), scores, case.k, case.m, case.has_cls)


def _compress(hidden: Tensor, metric: Tensor, scores: Tensor, k: int, m: int, has_cls: bool) -> Tensor:
    """Keep k tokens by `scores`, merge the others into m by the cosine similarity of `metric`."""
    B, S, _ = hidden.shape
    if has_cls:
        kept = scores.topk(k - 1, dim=1).indices + 1
        kept = torch.cat([kept.new_zeros(B, 1), kept], 1)
    else:
        kept = scores.topk(k, dim=1).indices
    remains = torch.ones(B, S, dtype=torch.bool, device=hidden.device).scatter_(1, kept, False)
    metric = metric[remains].view(B, S - k, metric.shape[2])
    metric = metric / metric.norm(dim=-1, keepdim=True)
    targets, to_merge = _targets(S - k, m, hidden.device)
    similarity = torch.bmm(metric[:, to_merge], metric[:, targets].transpose(1, 2))
    return _merge(hidden, remains, targets, to_merge, similarity.argmax(2))


def _carry_out(x: Tensor, assignment: Tensor, k: int, m: int) -> Tensor:
    """Merge x by a decision."""
    B, S, _ = x.shape
    remains = assignment >= k
    targets, to_merge = _targets(S - k, m, x.device)
    return _merge(x, remains, targets, to_merge, assignment[remains].view(B, S - k)[:, to_merge] - k)


def _targets(remaining: int, m: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Among the remaining tokens: the targets' numbers, and a mask of those to merge."""
    number = torch.arange(remaining, device=device)
    targets = number[:: max(1, remaining // m)][:m]
    return targets, ~torch.isin(number, targets)


def _merge(hidden: Tensor, remains: Tensor, targets: Tensor, to_merge: Tensor, joined: Tensor) -> Tensor:
    """Kept rows by mask, merged rows by a product with the one-hot matrix of the targets `joined` (B, n)."""
    B, _, C = hidden.shape
    kept = hidden.masked_select(~remains.unsqueeze(-1)).view(B, -1, C)
    others = hidden.masked_select(remains.unsqueeze(-1)).view(B, -1, C)
    one_hot = torch.zeros(*joined.shape, len(targets), dtype=hidden.dtype, device=hidden.device)
    one_hot.scatter_(2, joined.unsqueeze(-1), 1)
    counts = one_hot.sum(1).clamp(min=1).unsqueeze(-1)
    means = torch.bmm(one_hot.transpose(1, 2), others[:, to_merge]) / counts
    return torch.cat([kept, others[:, targets] + means], 1)


PROVIDERS: dict[str, Provider] = {"ours": ours, "recipe": recipe}
