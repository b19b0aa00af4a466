"""What the operators must compute, said a second time, in float64 and independently of the package's reference.

A decision (which tokens are kept, which target a token joins) is checked as a decision: it must be optimal under
float64 scores, up to the rounding that float32 arithmetic may bring. Where the scores differ by more than that, this
admits the float64 decision only. Given the decision, the tokens must be right to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from support.inputs import Call
from torch import Tensor

U32 = 2.0**-24  # relative rounding error of float32
_VANISHING = 2.0**-120  # an exp of less than about this may be anything less in float32
_UNIT = {torch.float32: U32, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
_SMALLEST = {torch.float32: 2.0**-149, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}


@dataclass(frozen=True)
class Estimate:
    """float64 values and, for each, how far a float32 computation of it may be off."""

    value: Tensor
    slack: Tensor


def score(call: Call) -> Estimate:
    """The scores (B, S) that a deciding call has to go by."""
    if "queries" in call.tensors:
        return _score_of_queries(call)
    attn = call.tensors["attn"].double()
    if attn.ndim == 2:
        return Estimate(attn, torch.zeros_like(attn))
    if attn.ndim == 4:
        attn = attn[:, :, 0] if call.has_cls else attn.mean(2)
    terms = call.tensors["attn"].shape[1] * (1 if call.has_cls else attn.shape[2])
    value = attn.sum(1) if call.has_cls else attn.mean(1)
    return Estimate(value, (terms + 2) * U32 * value.abs())


def _score_of_queries(call: Call) -> Estimate:
    queries, keys = call.tensors["queries"].double(), call.tensors["keys"].double()
    if call.has_cls:
        queries = queries[:, :, :1]
    scale = call.options["scale"]
    logits = queries @ keys.mT * scale
    rounding = (queries.shape[-1] + 4) * U32 * (queries.abs() @ keys.abs().mT * abs(scale)).amax(-1, keepdim=True)
    if "lse" in call.tensors:
        lse = call.tensors["lse"].double()[:, :, : queries.shape[2], None]
        attn, rounding = (logits - lse).exp(), rounding + 2 * U32 * lse.abs()
    else:
        attn = logits.softmax(-1)
    # Twice: once in the exponent, once in the sum that it is divided by.  A float32 exp is good to a few roundings.
    relative = 2 * rounding + (keys.shape[2] + keys.shape[1] + 16) * U32
    rows = 1 if call.has_cls else attn.shape[1] * attn.shape[2]
    return Estimate(attn.sum((1, 2)) / rows, (attn * relative + _VANISHING).sum((1, 2)) / rows)


def _ordered(value: Tensor) -> tuple[Tensor, Tensor]:
    """The ranks of the specification: NaN below every number, -inf included."""
    return ~value.isnan(), value.nan_to_num(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))


def best_first(scores: list[float], has_cls: bool) -> list[int]:
    """The order in which the tokens of one image are kept, by the letter of the specification."""

    def key(j: int) -> tuple:
        nan = scores[j] != scores[j]
        return (not (has_cls and j == 0), nan, 0 if nan else -scores[j], j)

    return sorted(range(len(scores)), key=key)


def check_indices(indices: Tensor, scores: Estimate, k: int, has_cls: bool) -> None:
    """`indices` (B, k) are k tokens, ascending, CLS first, and no other token's score is clearly higher."""
    B, S = scores.value.shape
    assert indices.dtype == torch.int64
    assert indices.shape == (B, k)
    assert ((indices >= 0) & (indices < S)).all()
    assert (indices.diff(dim=1) > 0).all(), "indices are not ascending"
    if has_cls:
        assert (indices[:, 0] == 0).all(), "CLS is not kept first"
    kept = torch.zeros(B, S, dtype=torch.bool).scatter_(1, indices, True)
    slack = torch.where(scores.value.isfinite(), scores.slack, 0)
    number, low = _ordered(scores.value + slack)
    _, high = _ordered(scores.value - slack)
    by_score = kept.clone()
    if has_cls:
        by_score[:, 0] = False
    for b in range(B):
        inside, outside = by_score[b], ~kept[b]
        if not inside.any() or not outside.any():
            continue
        assert number[b][inside].all() or not number[b][outside].any(), f"image {b}: NaN is kept, a number is not"
        worst, missed = low[b][inside].min(), high[b][outside & number[b]].amax() if number[b][outside].any() else None
        assert missed is None or worst >= missed, f"image {b}: {worst} is kept, {missed} is not"


def check_indices_exactly(indices: Tensor, scores: Tensor, has_cls: bool) -> None:
    """The same where scores are exact: equal scores go to the lower index."""
    k = indices.shape[1]
    expected = [sorted(best_first(image.tolist(), has_cls)[:k]) for image in scores]
    assert indices.tolist() == expected


def check_choice(indices: Tensor, scores: Estimate, keys: Tensor, call: Call) -> None:
    """`indices` are those of the call's policy, whether or not CLS takes a row."""
    k, has_cls = call.k, call.has_cls
    if not call.options.get("keep_cls", True):
        indices, keys, has_cls = indices - 1, keys[..., 1:, :], False
        scores = Estimate(scores.value[:, 1:], scores.slack[:, 1:])
    if call.options.get("policy", "attention") == "attention":
        check_indices(indices, scores, k, has_cls)
    else:
        _check_distinct(indices, scores, keys, k, has_cls)


def _check_distinct(indices: Tensor, scores: Estimate, keys: Tensor, k: int, has_cls: bool) -> None:
    """`indices` (B, k) are k tokens, ascending, CLS first, that the policy "distinct" may keep."""
    assert indices.dtype == torch.int64
    assert indices.shape == (len(scores.value), k)
    assert (indices.diff(dim=1) > 0).all(), "indices are not ascending"
    if has_cls:
        assert (indices[:, 0] == 0).all(), "CLS is not kept first"
    first = 1 if has_cls else 0
    for b, kept in enumerate(indices[:, first:] - first):
        own = Estimate(scores.value[b, first:], scores.slack[b, first:])
        heads = keys[b] if keys.ndim == 4 else keys[b].unsqueeze(0)
        assert _is_distinct(kept.tolist(), own, heads[:, first:]), f"image {b}: no order of steps keeps these"


def _is_distinct(kept: list[int], scores: Estimate, keys: Tensor) -> bool:
    """Whether the policy "distinct" may keep these patches (of keys (H, n, D)), in some order of steps.

    Steps are tried that keep one of them, and that rounding allows. What is kept determines the state, so that every
    set of kept patches is looked at once.
    """
    usable = keys.double().isfinite().all(-1).all(0)[:, None]
    near = similarity(*[torch.where(usable, keys.double(), 0)] * 2)
    lowest, highest = ((near.value + sign * near.slack.nan_to_num(nan=2)).clamp(0, 1) for sign in (-1, 1))
    zero = (keys == 0).all(-1).all(0) | ~usable.squeeze(1)
    for c in (lowest, highest):
        c[zero], c[:, zero] = 0, 0
    wanted = torch.zeros(len(scores.value), dtype=torch.bool)
    wanted[kept] = True
    most_states = 20_000
    seen: set[frozenset[int]] = set()
    states = [(frozenset[int](), lowest.new_zeros(len(wanted)), lowest.new_zeros(len(wanted)))]
    while states and len(seen) < most_states:
        taken, c_low, c_high = states.pop()
        if len(taken) == len(kept):
            return True
        if taken in seen:
            continue
        seen.add(taken)
        for v in _next_steps(taken, scores, c_low, c_high, wanted):
            c = torch.maximum(c_low, lowest[:, v]), torch.maximum(c_high, highest[:, v])
            states.append((taken | {v}, *c))
    return False


def _next_steps(taken: frozenset[int], scores: Estimate, c_low: Tensor, c_high: Tensor, wanted: Tensor) -> list[int]:
    """Of the wanted candidates those that may have the highest product s * (1 - c), the likeliest last."""
    slack = torch.where(scores.value.isfinite(), scores.slack, 0)
    corners = torch.stack([(scores.value + sign * slack) * (1 - c) for sign in (-1, 1) for c in (c_low, c_high)])
    rounding = torch.where(c_high > 0, 3 * U32 * scores.value.abs() + 2.0**-149, 0)
    # What is infinite becomes a NaN once c reaches 1: a corner is one then.  NaN below minus infinity, as numbers:
    ranks = corners.nan_to_num(nan=-2e300, posinf=1e300, neginf=-1e300)
    rounding = torch.where(scores.value.isfinite(), rounding, 0)
    low, high = ranks.amin(0) - rounding, ranks.amax(0) + rounding
    order = torch.arange(len(low))
    is_open = torch.ones(len(low), dtype=torch.bool)
    is_open[list(taken)] = False
    best = low[is_open].max()
    first_best = order[is_open & (low == best)][0]
    # Another's least must not be above one's most; of those whose products are exactly equal the first is the one.
    possible = wanted & is_open & ((high > best) | ((high == best) & (order <= first_best)))
    steps = possible.nonzero().flatten()
    return steps[(low + high)[steps].argsort(stable=True)].tolist()


def target_ranks(remaining: int, m: int) -> list[int]:
    """Which of the remaining tokens are targets."""
    step = max(1, remaining // m)
    return [t * step for t in range(m)]


def check_assignment(assignment: Tensor, indices: Tensor, keys: Tensor, k: int, m: int, keep_cls: bool = True) -> None:
    """`assignment` (B, S) agrees with `indices`, targets stand where they must, and every token joins its nearest."""
    if not keep_cls:
        assert (assignment[:, 0] == -1).all(), "CLS has a row"
        assignment, indices, keys = assignment[:, 1:], indices - 1, keys[..., 1:, :]
    B, S = assignment.shape
    assert assignment.dtype == torch.int64
    for b in range(B):
        image, kept = assignment[b], indices[b]
        assert torch.equal(image[kept], torch.arange(k))
        remains = torch.ones(S, dtype=torch.bool)
        remains[kept] = False
        rest = remains.nonzero().flatten()
        if m == 0:
            assert (image[rest] == -1).all()
            continue
        ranks = torch.tensor(target_ranks(S - k, m))
        targets = rest[ranks]
        assert torch.equal(image[targets], torch.arange(k, k + m))
        is_target = torch.zeros(S, dtype=torch.bool)
        is_target[targets] = True
        merging = (remains & ~is_target).nonzero().flatten()
        joined = image[merging] - k
        assert ((joined >= 0) & (joined < m)).all()
        heads = keys[b] if keys.ndim == 4 else keys[b].unsqueeze(0)
        _check_nearest(joined, heads[:, merging], heads[:, targets])


def similarity(tokens: Tensor, targets: Tensor) -> Estimate:
    """Cosine similarities (n, m) of the head means of keys (H, n, D) and (H, m, D); 0 for a key of length zero."""

    def unit(keys: Tensor) -> tuple[Tensor, Tensor]:
        H = keys.shape[0]
        mean = keys.double().mean(0)
        length = mean.norm(dim=-1, keepdim=True)
        off = (H + 2) * U32 * keys.double().abs().mean(0).norm(dim=-1, keepdim=True)
        off = torch.where(off > 0, off / length, 0)  # heads that cancel leave nothing but rounding
        return mean / torch.where(length > 0, length, 1), off

    (a, a_off), (b, b_off) = unit(tokens), unit(targets)
    slack = a_off + 2 * b_off.mT + (tokens.shape[-1] + 16) * U32
    return Estimate(a @ b.mT, slack)


def _check_nearest(joined: Tensor, tokens: Tensor, targets: Tensor) -> None:
    """Every token (H, n, D) joined (n,) the target (H, m, D) that is nearest, and of equal targets the first."""
    if len(joined) == 0:
        return
    near = similarity(tokens, targets)
    number, value = _ordered(near.value)
    slack = torch.where(number, near.slack, 0).amax(-1)
    chosen = value.gather(1, joined[:, None]).squeeze(1)
    chose_number = number.gather(1, joined[:, None]).squeeze(1)
    best = value.amax(-1)
    some = number.any(-1)
    assert (chose_number | ~some).all(), "a similarity of NaN was preferred to a number"
    assert (joined[~some] == 0).all(), "all similarities are NaN, so the lowest target is the one"
    wrong = some & (chosen < best - 2 * slack)
    assert not wrong.any(), f"{int(wrong.sum())} tokens joined a target that is not the nearest"
    first = _first_equal_target(targets)
    assert torch.equal(joined[some], first[joined[some]]), "of targets with equal keys the lower one wins"
    zero = some & (tokens == 0).all(-1).all(0)
    lowest = number.to(torch.int8).argmax(-1)  # the first that is a number
    assert torch.equal(joined[zero], lowest[zero]), "a key of length zero is equally near to all: the lowest wins"


def _first_equal_target(targets: Tensor) -> Tensor:
    """For each target (H, m, D) the first one with the same keys."""
    first: dict[tuple, int] = {}
    rows = targets.double().transpose(0, 1).flatten(1) + 0.0  # -0.0 equals 0.0
    return torch.tensor([first.setdefault(tuple(row.tolist()), t) for t, row in enumerate(rows)])


def _rows(assignment: Tensor, k: int, m: int) -> list[tuple[int | None, list[int]]]:
    """One image's output rows: the token that it is, and the tokens that are averaged into it."""
    rows: list[tuple[int | None, list[int]]] = [(None, [])] * (k + m)
    image = assignment.tolist()
    rest = [s for s, row in enumerate(image) if row >= k]
    targets = [rest[rank] for rank in target_ranks(len(rest), m)] if m else []
    for row in range(k + m):
        representative = image.index(row) if row < k else targets[row - k]
        rows[row] = (representative, [s for s, other in enumerate(image) if other == row and s != representative])
    return rows


def weights(assignment: Tensor, k: int, m: int, merge: str) -> Tensor:
    """The merge as a matrix (B, k + m, S) in float64: the tokens are `weights @ x`."""
    B, S = assignment.shape
    matrix = torch.zeros(B, k + m, S, dtype=torch.float64)
    for b in range(B):
        for row, (representative, averaged) in enumerate(_rows(assignment[b], k, m)):
            share = 1 / (len(averaged) + 1) if merge == "mean" else 1.0
            matrix[b, row, representative] = share
            if averaged:
                matrix[b, row, averaged] = share if merge == "mean" else 1 / len(averaged)
    return matrix


def _channels(x: Tensor) -> Tensor:
    """(B, S, *) -> (B, S, C)."""
    return x.reshape(*x.shape[:2], x.shape[2:].numel())


def _assert_near(actual: Tensor, expected: Tensor, slack: Tensor) -> None:
    """Within `slack` and one rounding to actual's dtype, with a hair for halfway cases."""
    rounding = (1 + 2**-10) * torch.maximum(_UNIT[actual.dtype] * expected.abs(), torch.tensor(_SMALLEST[actual.dtype]))
    excess = (actual.double() - expected).abs() - rounding - slack
    assert (excess <= 0).all(), f"off by {excess.max():.3e} more than rounding allows"


def check_merge(out: Tensor, x: Tensor, assignment: Tensor, k: int, m: int, merge: str) -> None:
    """`out` (B, k + m, *) is x (B, S, *) merged as `assignment` says: kept rows exactly, merged ones to rounding.

    The sums are float32, one rounding a term, so that the result may be off by as many roundings of the sum of
    magnitudes as a row has terms, and by one rounding to the output's dtype.
    """
    assert out.dtype == x.dtype
    assert out.shape == (x.shape[0], k + m, *x.shape[2:])
    out, x = _channels(out), _channels(x)
    kept = (assignment[:, None] == torch.arange(k)[:, None]).to(torch.int8).argmax(-1)
    assert torch.equal(out[:, :k], x.gather(1, kept[..., None].expand(-1, -1, x.shape[2]))), "kept tokens changed"
    matrix = weights(assignment, k, m, merge)[:, k:]
    terms = (matrix > 0).sum(-1, keepdim=True) + 2
    _assert_near(out[:, k:], matrix @ x.double(), terms * U32 * (matrix @ x.double().abs()))


def check_merge_backward(out: Tensor, grad: Tensor, assignment: Tensor, k: int, m: int, merge: str) -> None:
    """`out` (B, S, *) holds for each token its row's gradient times its weight; weight and product round once each."""
    assert out.dtype == grad.dtype
    assert out.shape == (*assignment.shape, *grad.shape[2:])
    expected = weights(assignment, k, m, merge).mT @ _channels(grad).double()
    _assert_near(_channels(out), expected, 2 * U32 * expected.abs())


def check(call: Call, results: tuple[Tensor, ...]) -> None:
    """Everything that a call's results must be."""
    if call.op in ("merge", "merge_backward"):
        x = call.tensors["x" if call.op == "merge" else "grad"]
        checks = check_merge if call.op == "merge" else check_merge_backward
        checks(results[0], x, call.tensors["assignment"], call.k, call.m, call.options["merge"])
        return
    indices, assignment = results[-2:]
    check_choice(indices, score(call), call.tensors["keys"], call)
    check_assignment(assignment, indices, call.tensors["keys"], call.k, call.m, call.options.get("keep_cls", True))
    if "hidden" in call.tensors:
        merge = call.options["merge"]
        check_merge(results[0], call.tensors["hidden"], assignment, call.k, call.m, merge)


def released_recipe(hidden: Tensor, keys: Tensor, attn: Tensor, k: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """The released implementation's steps for an encoder with CLS: (tokens, mask of kept tokens, targets joined).

    Top-k of the CLS row's sum over heads, masks, head-mean keys of length one, a product with a one-hot matrix. The
    last result is (B, S - k - m): for each token that is merged, in ascending order, the number of its target.
    """
    B, S, C = hidden.shape
    top = attn[:, :, 0, 1:].sum(1).topk(k - 1, dim=1).indices + 1
    kept = torch.zeros(B, S, dtype=torch.bool).scatter_(1, torch.cat([top.new_zeros(B, 1), top], 1), True)
    dominant = hidden[kept].view(B, k, C)
    rest, metric = hidden[~kept].view(B, S - k, C), keys.mean(1)[~kept].view(B, S - k, -1)
    metric = metric / metric.norm(dim=-1, keepdim=True)

    is_target = torch.zeros(S - k, dtype=torch.bool)
    is_target[torch.arange(0, S - k, max(1, (S - k) // m))[:m]] = True
    joined = (metric[:, ~is_target] @ metric[:, is_target].mT).argmax(-1)
    one_hot = torch.nn.functional.one_hot(joined, m).to(hidden.dtype)
    means = one_hot.mT @ rest[:, ~is_target] / one_hot.sum(1).clamp(min=1)[..., None]
    return torch.cat([dominant, rest[:, is_target] + means], 1), kept, joined


def is_clear(call: Call) -> bool:
    """Whether no score and no similarity of a call stands so near to another that rounding might decide."""
    scores = score(call)
    k, m = call.k, call.m
    for b, (value, slack) in enumerate(zip(scores.value, scores.slack, strict=True)):
        order = best_first(value.tolist(), call.has_cls)
        margin = 4 * slack.max()
        if k < len(order) and value[order[k - 1]] - value[order[k]] <= margin and k > call.has_cls:
            return False
        rest = torch.tensor(sorted(order[k:]))
        keys = call.tensors["keys"][b]
        keys = keys if keys.ndim == 3 else keys[None]
        ranks = torch.tensor(target_ranks(len(rest), m))
        merging = torch.ones(len(rest), dtype=torch.bool)
        merging[ranks] = False
        near = similarity(keys[:, rest[merging]], keys[:, rest[ranks]])
        best = near.value.topk(min(2, m), dim=-1).values
        if m > 1 and (best[:, 0] - best[:, 1] <= 4 * near.slack.amax(-1)).any():
            return False
    return True
