"""Equal scores, equal similarities, NaN, infinities, keys of length zero and keys of extreme length."""

from __future__ import annotations

import math

import pytest
import torch
from support import oracle
from support.inputs import BF16, DTYPES, F32, SMALL, Call, Shape, dtype_name, normal, random_call, random_keys
from torch import Tensor

INF, NAN = math.inf, math.nan


def decide(backend, *, scores: Tensor | None = None, keys: Tensor | None = None, k: int, m: int = 0, has_cls=False):
    """`select` of one image from finished scores (S,) and keys (S, D), each optional: two lists."""
    S = len(scores if scores is not None else keys)
    scores = torch.zeros(S) if scores is None else scores
    keys = torch.ones(S, 1) if keys is None else keys
    call = Call("select", {"keys": keys[None], "attn": scores[None]}, k, m, {"has_cls": has_cls})
    indices, assignment = call.on(backend)
    return indices[0].tolist(), assignment[0].tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "mean"])
@pytest.mark.parametrize("S", [2, 17, 64, 577, 1300])
def test_constant_scores_keep_the_first(backend, S, has_cls, dtype):
    k = max(1, S // 3)
    assert decide(backend, scores=torch.full((S,), 0.25, dtype=dtype), k=k, has_cls=has_cls)[0] == list(range(k))


@pytest.mark.parametrize("form", ["matrix", "rows", "scores"])
@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "mean"])
def test_few_distinct_scores(backend, rng, has_cls, form):
    """Small whole numbers have exact sums, and means over powers of two: ties by the dozen, one right answer."""
    shape = Shape(B=3, S=256, C=4, H=4, D=8, k=60, m=8, has_cls=has_cls)
    sizes = {"matrix": (4, 256, 256), "rows": (4, 256), "scores": (256,)}[form]
    attn = torch.randint(3, (3, *sizes), generator=rng).to(BF16)
    call = random_call("select", rng, shape).with_tensors(attn=attn)
    oracle.check_indices_exactly(call.on(backend)[0], oracle.score(call).value, has_cls)


@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "mean"])
def test_equal_queries_and_keys_tie(backend, has_cls):
    shape = Shape(B=2, S=70, C=4, H=2, D=16, k=9, m=4, has_cls=has_cls)
    call = random_call("zip_qk", torch.Generator().manual_seed(0), shape)
    ones = torch.ones_like(call.tensors["keys"])
    indices = call.with_tensors(queries=ones, keys=ones).on(backend)[1]
    assert indices.tolist() == [list(range(9))] * 2


def test_minus_zero_ties_with_zero(backend):
    scores = torch.tensor([-1.0, -0.0, 0.0, -0.0, 0.0, -2.0])
    for k, expected in ((1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (5, [0, 1, 2, 3, 4])):
        assert decide(backend, scores=scores, k=k)[0] == expected


def test_smallest_differences_decide(backend):
    """Neighbouring numbers, subnormal ones too, are not equal."""
    tiny = 2.0**-149
    scores = torch.tensor([0.0, tiny, 2 * tiny, -tiny, 1.0, 1 + 2.0**-23, -1.0, -1 + 2.0**-24])
    order = sorted(range(8), key=lambda j: -scores[j].item())
    for k in range(1, 9):
        assert decide(backend, scores=scores, k=k)[0] == sorted(order[:k])


def test_negative_scores(backend, rng):
    scores = -torch.randperm(300, generator=rng).float()
    oracle.check_indices_exactly(torch.tensor([decide(backend, scores=scores, k=40)[0]]), scores[None], False)


@pytest.mark.parametrize("sign", [1, -1], ids=["+nan", "-nan"])
def test_nan_ranks_below_minus_infinity(backend, sign):
    nan = math.copysign(NAN, sign)
    scores = torch.tensor([nan, -INF, 1.0, nan, INF, -INF, -5.0, nan])
    order = [4, 2, 6, 1, 5, 0, 3, 7]
    for k in range(1, 9):
        assert decide(backend, scores=scores, k=k)[0] == sorted(order[:k])


@pytest.mark.parametrize("cls_score", [0.0, -INF, NAN, INF])
def test_cls_is_kept_whatever_its_score(backend, cls_score):
    scores = torch.tensor([cls_score, 3.0, NAN, INF, 2.0, -INF])
    for k, expected in ((1, [0]), (2, [0, 3]), (3, [0, 1, 3]), (5, [0, 1, 3, 4, 5]), (6, [0, 1, 2, 3, 4, 5])):
        assert decide(backend, scores=scores, k=k, has_cls=True)[0] == expected


def test_nothing_but_nan_keeps_the_first(backend):
    assert decide(backend, scores=torch.full((40,), NAN), k=7)[0] == list(range(7))


def test_nan_in_one_image_stays_there(bitwise_backend, rng):
    call = random_call("zip", rng, SMALL)
    expected = call.on(bitwise_backend)
    poisoned = call.with_tensors(**{name: x.clone() for name, x in call.tensors.items()})
    for x in poisoned.tensors.values():
        x[1] = NAN
    for a, b in zip(expected, poisoned.on(bitwise_backend), strict=True):
        assert torch.equal(a[[0, 2]], b[[0, 2]])


@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "mean"])
def test_nan_in_a_key_ranks_its_token_last(backend, rng, has_cls):
    """A query over a NaN key has no softmax, so every token's score is NaN, and the first are kept."""
    shape = Shape(B=1, S=50, C=4, H=2, D=8, k=6, m=3, has_cls=has_cls)
    call = random_call("zip_qk", rng, shape)
    keys = call.tensors["keys"].clone()
    keys[0, 1, 20, 3] = NAN
    _, indices, assignment = call.with_tensors(keys=keys).on(backend)
    assert indices.tolist() == [[0, 1, 2, 3, 4, 5]]
    oracle.check_assignment(assignment, indices, keys, 6, 3)


# --- logits of all queries -------------------------------------------------------------------------------------------


def scored_by_all(backend, queries: Tensor, keys: Tensor, k: int, scale: float = 1.0) -> list[int]:
    """The tokens that `select_qk` without CLS keeps of one image of one head: queries and keys (S, D)."""
    tensors = {"queries": queries[None, None], "keys": keys[None, None]}
    indices, _ = Call("select_qk", tensors, k, 0, {"has_cls": False, "scale": scale}).on(backend)
    return indices[0].tolist()


@pytest.mark.parametrize("S", [64, 1100])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_logits_so_far_apart_that_every_query_has_one_key(backend, rng, dtype, S):
    """Each query attends to one key alone: a token's score is the number of its queries. Others' underflow to zero."""
    D, k = 64, 12
    favourites = torch.randperm(S, generator=rng)[:D]  # the keys that are attended to at all
    of_query = torch.randint(D, (S,), generator=rng)
    keys = torch.zeros(S, D, dtype=dtype)
    keys[favourites, torch.arange(D)] = 100
    queries = torch.zeros(S, D, dtype=dtype)
    queries[torch.arange(S), of_query] = 100
    counts = torch.zeros(S, dtype=torch.int64)
    counts[favourites] = torch.bincount(of_query, minlength=D)
    expected = sorted(sorted(range(S), key=lambda token: (-counts[token].item(), token))[:k])
    assert scored_by_all(backend, queries, keys, k) == expected


@pytest.mark.parametrize("S", [50, 1100])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_a_key_that_no_query_can_attend_to(backend, rng, dtype, S):
    """Its logits are minus infinity: its score is the lowest of all, and no other is spoilt."""
    queries, keys = (torch.rand(S, 16, generator=rng).to(dtype) + 0.5 for _ in range(2))
    keys[7, 3] = -INF
    kept = scored_by_all(backend, queries, keys, S - 1, scale=0.25)
    assert kept == [token for token in range(S) if token != 7]


@pytest.mark.parametrize(
    ("spoilt", "value"), [("query", NAN), ("query", INF), ("query", -INF), ("key", NAN), ("key", INF)]
)
@pytest.mark.parametrize("S", [50, 1100])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_a_row_without_a_softmax_spoils_all_scores(backend, rng, dtype, S, value, spoilt):
    """It is NaN, and so is every column's mean: the first tokens are kept."""
    inputs = {name: torch.rand(S, 16, generator=rng).to(dtype) + 0.5 for name in ("query", "key")}
    inputs[spoilt][S // 2, 5] = value
    assert scored_by_all(backend, inputs["query"], inputs["key"], 6) == list(range(6))


# --- similarities: tokens 0, 3, 6, ... are the targets of the images below ------------------------------------------


def joined(backend, targets: list, tokens: list, dtype: torch.dtype = F32) -> list[int]:
    """The number of the target that each token joins, from their keys; k = 0."""
    m, rest = len(targets), len(tokens)
    assert rest == 2 * m
    keys = torch.tensor([key for t in range(m) for key in (targets[t], tokens[2 * t], tokens[2 * t + 1])], dtype=dtype)
    _, assignment = decide(backend, keys=keys, k=0, m=m)
    assert assignment[::3] == list(range(m))
    return [assignment[3 * (i // 2) + 1 + i % 2] for i in range(rest)]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_equal_targets_give_the_lower_one(backend, dtype):
    targets = [[0.3, -1.7, 0.1], [0.9, 0.2, 0.4], [0.9, 0.2, 0.4], [0.3, -1.7, 0.1]]
    tokens = [[1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [2, 2, 2], [0, -3, 1], [-1, -1, 0], [1, 0, 1]]
    assert set(joined(backend, targets, tokens, dtype)) == {0, 1}


def test_equal_directions_of_different_length_give_the_lower_one(backend):
    """Powers of two, so that the directions are equal to the last bit."""
    targets = [[1.5, 0.5], [-1, 1], [6, 2], [-4, 4]]
    tokens = [[1, 0], [0, 1], [-1, 0], [2, 1], [-2, 1], [1, 1], [-1, 3], [5, 0]]
    assert set(joined(backend, targets, tokens)) == {0, 1}


@pytest.mark.parametrize("many", [40, 300])
def test_duplicate_keys_everywhere(backend, rng, many):
    """All tokens have one of three keys; the first target with a token's own key is its own."""
    palette = normal(rng, 3, 16)
    choice = torch.randint(3, (3 * many,), generator=rng)
    _, assignment = decide(backend, keys=palette[choice], k=0, m=many)
    first = {c: next(t for t in range(many) if choice[3 * t] == c) for c in choice[::3].tolist()}
    for s, c in enumerate(choice.tolist()):
        if s % 3 and c in first:
            assert assignment[s] == first[c]


def test_zero_keys_join_the_first_target(backend):
    targets, nothing = [[-1.0, 2.0], [3.0, 1.0]], [0.0, 0.0]
    assert joined(backend, targets, [nothing] * 4) == [0] * 4
    assert joined(backend, targets, [[-0.0, -0.0], nothing] * 2) == [0] * 4


def test_a_target_of_length_zero_has_similarity_zero(backend):
    targets = [[0.0, 0.0], [1.0, 0.0]]
    assert joined(backend, targets, [[1, 1], [-1, 1], [0, 1], [-0.0, -1]]) == [1, 0, 0, 0]
    assert joined(backend, targets[::-1], [[1, 1], [-1, 1], [0, 1], [-0.0, -1]]) == [0, 1, 0, 0]


def test_nothing_but_zero_keys(backend):
    assert joined(backend, [[0.0]] * 3, [[0.0]] * 6) == [0] * 6


def test_minus_zero_similarity_ties_with_zero(backend):
    assert joined(backend, [[-1.0, 0.0], [1.0, 0.0]], [[0, 1], [-0.0, 1], [0, -1], [-0.0, -1]]) == [0] * 4


@pytest.mark.parametrize("sign", [1, -1], ids=["+nan", "-nan"])
def test_nan_similarity_is_below_every_number(backend, sign):
    nan = math.copysign(NAN, sign)
    targets = [[nan, 1.0], [-1.0, 0.0], [1.0, nan]]
    assert joined(backend, targets, [[1, 0], [1, 1], [-1, 0], [0, 0], [0, 1], [0, -1]]) == [1] * 6


def test_a_nan_token_joins_the_first_target(backend):
    tokens = [[NAN, 1.0], [1.0, NAN], [0.0, -1.0], [NAN, NAN]]
    assert joined(backend, [[0.0, 1.0], [0.0, -1.0]], tokens) == [0, 0, 1, 0]
    assert joined(backend, [[NAN, 1.0], [0.0, NAN]], tokens) == [0] * 4


@pytest.mark.parametrize("D", [3, 16, 65])
def test_an_infinite_target_is_nobodys(backend, rng, D):
    """Its direction is no number, hence its similarity neither; the other targets are as before."""
    keys = normal(rng, 60, D)
    keys[3, D // 2] = INF
    keys[9, 0] = -INF
    _, assignment = decide(backend, keys=keys, k=0, m=20)
    others = [row for s, row in enumerate(assignment) if s % 3]
    assert 1 not in others
    assert 3 not in others


@pytest.mark.parametrize("dtype", [F32, BF16], ids=dtype_name)
@pytest.mark.parametrize("keys_form", ["heads", "mean"])
@pytest.mark.parametrize("magnitude", [1e-30, 1e-15, 1e15, 1e30])
def test_the_length_of_keys_does_not_matter(backend, rng, magnitude, keys_form, dtype):
    """Squares of 1e30 are infinite in float32 and those of 1e-30 zero: a length must survive both."""
    shape = Shape(B=2, S=100, C=4, H=3, D=64, k=10, m=8)
    call = random_call("select", rng, shape, keys=keys_form)
    keys = (random_keys(rng, shape, F32, keys_form) * magnitude).to(dtype)
    indices, assignment = call.with_tensors(keys=keys).on(backend)
    oracle.check_assignment(assignment, indices, keys, shape.k, shape.m)


def test_keys_of_very_different_lengths(backend, rng):
    """Each token's length its own, from 1e-25 to 1e25."""
    shape = Shape(B=2, S=200, C=4, H=2, D=32, k=10, m=12)
    call = random_call("select", rng, shape)
    exponents = torch.randint(-25, 26, (2, 1, 200, 1), generator=rng)
    keys = call.tensors["keys"] * 10.0**exponents
    indices, assignment = call.with_tensors(keys=keys).on(backend)
    oracle.check_assignment(assignment, indices, keys, shape.k, shape.m)


def test_heads_that_cancel_leave_a_key_of_length_zero(backend, rng):
    half = normal(rng, 1, 1, 30, 8)
    keys = torch.cat([half, -half], 1)
    call = Call("select", {"keys": keys, "attn": torch.zeros(1, 30)}, 0, 5, {"has_cls": False})
    _, assignment = call.on(backend)
    assert assignment.tolist() == [[s // 6 if s % 6 == 0 else 0 for s in range(30)]]
