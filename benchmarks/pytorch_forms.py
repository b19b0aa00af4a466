"""The released implementation's steps in PyTorch: as they were released, and in the best form that PyTorch has.

`released` selects by boolean masks, whose counts nobody knows before they are computed: it makes a GPU's host wait, and
it cannot be compiled as one graph. `best` takes the same decision and moves as little as PyTorch's operators allow:
hidden and keys are each read once, by matrix products, and nothing but the result is written at their size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.cases import Case, Inputs, packed_images


def released(case: Case, inputs: Inputs) -> Tensor:
    """The released implementation's steps, eager, in the inputs' dtype.

    Where only queries and keys are given, it computes from them the attention that it needs: CLS's rows, or all. Where
    the decision is given, it does what is left of its steps.
    """
    hidden = inputs["hidden"]
    if case.op == "merge":
        return _merge_given(hidden, inputs["assignment"], case.k, case.m)
    if case.op == "zip_packed":
        return torch.cat([released(*image)[0] for image in packed_images(case, inputs)])
    return _compress(hidden, _of_tokens(inputs["keys"].mean(1), case), _kept(case, inputs), case.k, case.m)


def best(case: Case, inputs: Inputs) -> Tensor:
    """The same tokens, up to rounding; depends on no data's count, so that it can be compiled and recorded."""
    if case.op == "zip_packed":
        return torch.cat([best(*image)[0] for image in packed_images(case, inputs)])
    kept = None if case.op == "merge" else _kept(case, inputs)
    return _best(case, inputs, kept)


def best_by_heads(case: Case, inputs: Inputs) -> Tensor:
    """`best`, but scored head by head, in memory that stays in a cache.

    Nobody's encoder attends like this. All heads' attention at once is more than malloc keeps, so that `best` spends
    about half of its time on page faults; this one has none.
    """
    if case.op == "zip_packed":
        return torch.cat([best_by_heads(*image)[0] for image in packed_images(case, inputs)])
    scores = inputs["hidden"].new_zeros(case.B, case.S * case.group, dtype=torch.float32)
    for b in range(case.B):
        for query, key in zip(inputs["queries"][b], inputs["keys"][b], strict=True):
            scores[b] += ((query * case.scale) @ key.T).softmax(-1).mean(0)
    return _best(case, inputs, _of_tokens(scores, case).topk(case.k, dim=1).indices)


def _of_tokens(x: Tensor, case: Case) -> Tensor:
    """The mean over each token's cells: x (B, group * S, *)."""
    return x.unflatten(1, (case.S, case.group)).mean(2) if case.group > 1 else x


def _kept(case: Case, inputs: Inputs) -> Tensor:
    """The tokens (B, k) with the largest scores, CLS before them where there is one."""
    if case.op == "zip":
        attn = inputs["attn"]
    else:
        queries = inputs["queries"][:, :, :1] if case.has_cls else inputs["queries"]
        attn = ((queries * case.scale) @ inputs["keys"].transpose(2, 3)).softmax(-1)
    if not case.has_cls:
        return _of_tokens(attn.mean((1, 2)), case).topk(case.k, dim=1).indices
    kept = attn[:, :, 0, 1:].sum(1).topk(case.k - 1, dim=1).indices + 1
    return torch.cat([kept.new_zeros(case.B, 1), kept], 1)


def _compress(hidden: Tensor, metric: Tensor, kept: Tensor, k: int, m: int) -> Tensor:
    """Keep the tokens `kept` (B, k), merge the others into m by the cosine similarity of `metric`."""
    B, S, _ = hidden.shape
    remains = torch.ones(B, S, dtype=torch.bool, device=hidden.device).scatter_(1, kept, False)
    metric = metric[remains].view(B, S - k, metric.shape[2])
    metric = metric / metric.norm(dim=-1, keepdim=True)
    targets, to_merge = _targets(S - k, m, hidden.device)
    similarity = torch.bmm(metric[:, to_merge], metric[:, targets].transpose(1, 2))
    return _merge(hidden, remains, targets, to_merge, similarity.argmax(2))


def _merge_given(x: Tensor, assignment: Tensor, k: int, m: int) -> Tensor:
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


def _best(case: Case, inputs: Inputs, kept: Tensor | None) -> Tensor:
    """The tokens of the decision to keep `kept` (B, k), or of the assignment that is given."""
    hidden, (k, m) = inputs["hidden"], (case.k, case.m)
    B, S, _ = hidden.shape
    if kept is None:
        remains = inputs["assignment"] >= k
    else:
        remains = torch.ones(B, S, dtype=torch.bool, device=hidden.device).scatter(1, kept, False)
    kept, rest = remains.to(torch.uint8).sort(dim=1, stable=True).indices.split([k, S - k], 1)
    targets = rest[:, :: max(1, (S - k) // m)][:, :m]
    joined = inputs["assignment"] - k if case.op == "merge" else _nearest(case, inputs["keys"], targets)
    # One row of weights for each target, so that one product with hidden makes targets and means at once.
    merges = remains.scatter(1, targets, False).to(hidden.dtype)
    weights = hidden.new_zeros(B, m, S).scatter(1, joined.clamp(min=0).unsqueeze(1), merges.unsqueeze(1))
    weights = (weights / weights.sum(2, keepdim=True).clamp(min=1)).scatter(2, targets.unsqueeze(2), 1)
    return torch.cat([_rows(hidden, kept), torch.bmm(weights, hidden)], 1)


def _nearest(case: Case, keys: Tensor, targets: Tensor) -> Tensor:
    """Of every token (B, S) the target of highest cosine similarity; its own length cannot change which that is."""
    metric = _of_tokens(keys.mean(1), case)
    directions = torch.nn.functional.normalize(_rows(metric, targets), dim=-1)
    return torch.bmm(metric, directions.transpose(1, 2)).argmax(2)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (B, n) of x (B, S, C)."""
    first = torch.arange(0, x.shape[0] * x.shape[1], x.shape[1], device=x.device).unsqueeze(1)
    return x.flatten(0, 1).index_select(0, (first + index).flatten()).unflatten(0, index.shape)
