"""Decisions (which tokens are kept, which target each token joins) and the tokens that follow from them."""

from __future__ import annotations

import itertools

import pytest
import torch
from support import oracle
from support.inputs import (
    ATTN_FORMS,
    BF16,
    DTYPES,
    F16,
    F32,
    KEYS_FORMS,
    MERGE_WORDS,
    SHAPES,
    SMALL,
    ZIPPING,
    Call,
    Shape,
    dtype_name,
    normal,
    random_call,
    random_keys,
)

WITHOUT_CLS = Shape(B=2, S=150, C=20, H=3, D=16, k=7, m=5, has_cls=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", ZIPPING)
def test_every_shape(backend, rng, op, shape, dtype):
    call = random_call(op, rng, shape, (dtype, dtype, dtype))
    oracle.check(call, call.on(backend))


@pytest.mark.parametrize(
    "dtypes", list(itertools.product(DTYPES, repeat=3)), ids=lambda x: "-".join(map(dtype_name, x))
)
@pytest.mark.parametrize("op", ZIPPING)
def test_every_mixture_of_dtypes(backend, rng, op, dtypes):
    if op == "zip_qk" and dtypes[1] != dtypes[2]:
        queries, keys = (random_keys(rng, SMALL, dtype) for dtype in dtypes[1:])
        call = random_call(op, rng, SMALL, dtypes).with_tensors(queries=queries, keys=keys)
    else:
        call = random_call(op, rng, SMALL, dtypes)
    oracle.check(call, call.on(backend))


@pytest.mark.parametrize("merge", MERGE_WORDS)
@pytest.mark.parametrize("keys", KEYS_FORMS)
@pytest.mark.parametrize("attn", ATTN_FORMS)
@pytest.mark.parametrize("shape", [SMALL, WITHOUT_CLS], ids=str)
def test_every_form_of_attention_and_keys(backend, rng, shape, attn, keys, merge):
    call = random_call("zip", rng, shape, (F16, BF16, F32), merge=merge, attn=attn, keys=keys)
    oracle.check(call, call.on(backend))


@pytest.mark.parametrize("given_lse", [False, True], ids=["softmax", "lse"])
@pytest.mark.parametrize("merge", MERGE_WORDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("shape", [SMALL, WITHOUT_CLS], ids=str)
def test_queries_with_and_without_lse(backend, rng, shape, dtype, merge, given_lse):
    call = random_call("zip_qk", rng, shape, (dtype, dtype, dtype), merge=merge, lse=given_lse)
    oracle.check(call, call.on(backend))


@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "mean"])
def test_lse_is_used(backend, rng, has_cls):
    """A row whose log-sum-exp says that it is negligible must not count."""
    shape = Shape(B=1, S=60, C=4, H=2, D=16, k=9, m=4, has_cls=has_cls)
    call = random_call("zip_qk", rng, shape, lse=True)
    lse = call.tensors["lse"].clone()
    lse[:, 0] += 60
    only_second_head = Call(
        "zip_qk",
        {name: x if name == "hidden" else x[:, 1:] for name, x in call.tensors.items()},
        call.k,
        call.m,
        call.options,
    )
    indices = call.with_tensors(lse=lse).on(backend)[1]
    oracle.check_indices(indices, oracle.score(only_second_head), call.k, has_cls)


@pytest.mark.parametrize("scale", [0.0, -0.3, 1.0, 25.0])
@pytest.mark.parametrize("shape", [SMALL, WITHOUT_CLS], ids=str)
def test_any_scale(backend, rng, shape, scale):
    call = random_call("zip_qk", rng, shape)
    call = Call(call.op, call.tensors, call.k, call.m, {**call.options, "scale": scale})
    oracle.check(call, call.on(backend))


@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "mean"])
def test_large_logits_do_not_overflow(backend, rng, has_cls):
    """exp(logit) alone would be infinite; the softmax is not."""
    shape = Shape(B=2, S=70, C=4, H=2, D=32, k=9, m=4, has_cls=has_cls)
    call = random_call("zip_qk", rng, shape)
    call = call.with_tensors(queries=call.tensors["queries"] * 300)
    oracle.check(call, call.on(backend))


@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "mean"])
@pytest.mark.parametrize("S", [2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 383])
def test_every_size_near_a_block(backend, rng, S, has_cls):
    """Vector widths, chunks of queries and blocks of tokens end somewhere: one less, exact, one more."""
    shape = Shape(B=2, S=S, C=S % 19 + 1, H=2, D=S % 23 + 1, k=max(1, S // 4), m=max(1, S // 8), has_cls=has_cls)
    for op in ZIPPING:
        call = random_call(op, rng, shape)
        oracle.check(call, call.on(backend))


@pytest.mark.parametrize("D", [1, 2, 7, 8, 15, 16, 17, 31, 33, 64, 72, 80, 96, 128, 160, 256])
def test_every_head_dim(backend, rng, D):
    for op, has_cls, dtype in itertools.product(ZIPPING, (True, False), (F32, BF16)):
        shape = Shape(B=1, S=70, C=8, H=3, D=D, k=9, m=6, has_cls=has_cls)
        call = random_call(op, rng, shape, (dtype, dtype, dtype))
        oracle.check(call, call.on(backend))


@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "mean"])
def test_every_budget_of_a_short_image(backend, rng, has_cls):
    S = 9
    for k, m in itertools.product(range(1 if has_cls else 0, S + 1), range(S + 1)):
        if not 1 <= k + m <= S:
            continue
        for op in ZIPPING:
            call = random_call(op, rng, Shape(B=2, S=S, C=5, H=2, D=6, k=k, m=m, has_cls=has_cls))
            oracle.check(call, call.on(backend))


@pytest.mark.parametrize("op", ["zip", "zip_qk"])
@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "mean"])
def test_selecting_and_merging_is_zipping(bitwise_backend, rng, op, has_cls):
    shape = Shape(B=3, S=130, C=40, H=4, D=24, k=17, m=8, has_cls=has_cls)
    call = random_call(op, rng, shape, (BF16, F16, F32), merge="mean")
    tokens, indices, assignment = call.on(bitwise_backend)
    decision = {name: x for name, x in call.tensors.items() if name != "hidden"}
    options = {name: x for name, x in call.options.items() if name != "merge"}
    selected = Call(op.replace("zip", "select"), decision, call.k, call.m, options).on(bitwise_backend)
    assert torch.equal(selected[0], indices)
    assert torch.equal(selected[1], assignment)
    arguments = {"x": call.tensors["hidden"], "assignment": assignment}
    (merged,) = Call("merge", arguments, call.k, call.m, {"merge": "mean"}).on(bitwise_backend)
    assert torch.equal(merged, tokens)


@pytest.mark.parametrize("op", ["select", "select_qk"])
@pytest.mark.parametrize("shape", [SMALL, WITHOUT_CLS], ids=str)
def test_deciding_alone(backend, rng, op, shape):
    call = random_call(op, rng, shape)
    oracle.check(call, call.on(backend))


def test_only_the_row_of_cls_counts(bitwise_backend, rng):
    """With CLS, attention between patches is not read: NaN there changes nothing."""
    call = random_call("zip", rng, SMALL)
    attn = call.tensors["attn"].clone()
    attn[:, :, 1:] = torch.nan
    rows = call.with_tensors(attn=attn[:, :, 0])
    for expected, *others in zip(
        *(x.on(bitwise_backend) for x in (call, call.with_tensors(attn=attn), rows)), strict=True
    ):
        assert all(torch.equal(expected, other) for other in others)


def test_scores_are_decided_exactly_where_they_differ(backend, rng):
    """Distinct whole numbers: there is one right selection, and it has to be found."""
    shape = Shape(B=4, S=577, C=3, H=4, D=8, k=54, m=10)
    scores = torch.stack([torch.randperm(shape.S, generator=rng) for _ in range(shape.B)]).float()
    for has_cls in (True, False):
        call = random_call("select", rng, shape).with_tensors(attn=scores)
        call.options["has_cls"] = has_cls
        indices, _ = call.on(backend)
        oracle.check_indices_exactly(indices, scores, has_cls)


def test_assignment_is_exact_where_targets_are_orthogonal(backend, rng):
    """Targets are unit vectors; every token joins the one of its largest coordinate."""
    m, step = 6, 7
    S = m * step
    keys = torch.rand(2, S, m, generator=rng) + 0.1
    winner = torch.randint(m, (2, S), generator=rng)
    keys.scatter_(2, winner[..., None], 2.0)
    keys[:, ::step] = torch.eye(m) * (torch.rand(m, 1, generator=rng) + 0.01) * 50  # lengths must not matter
    winner[:, ::step] = torch.arange(m)
    _, assignment = Call("select", {"keys": keys, "attn": torch.rand(2, S)}, 0, m, {"has_cls": False}).on(backend)
    assert torch.equal(assignment, winner)


def test_heads_are_averaged_not_concatenated(backend, rng):
    """The metric is the mean over heads: (B, H, S, D) decides as its mean (B, S, D) does."""
    shape = Shape(B=2, S=120, C=4, H=4, D=16, k=10, m=7)
    keys = torch.randint(-8, 8, (2, 4, 120, 16), generator=rng).float()  # exact sums and means
    call = random_call("select", rng, shape)
    of_heads = call.with_tensors(keys=keys).on(backend)
    of_mean = call.with_tensors(keys=keys.mean(1)).on(backend)
    assert torch.equal(of_heads[1], of_mean[1])


def test_a_head_of_its_own_is_a_mean_of_one(bitwise_backend, rng):
    shape = Shape(B=2, S=60, C=4, H=1, D=16, k=10, m=7)
    call = random_call("select", rng, shape)
    single = call.with_tensors(keys=call.tensors["keys"][:, 0])
    assert torch.equal(call.on(bitwise_backend)[1], single.on(bitwise_backend)[1])


@pytest.mark.parametrize("favourite", [0, 63, 127, 128, 299])
def test_every_token_can_be_the_favourite(backend, rng, favourite):
    """One token that all the others attend to, wherever it stands among the blocks of keys."""
    keys = normal(rng, 1, 2, 300, 8)
    keys[:, :, favourite] = 9
    queries = torch.ones(1, 2, 300, 8)
    call = Call("select_qk", {"queries": queries, "keys": keys}, 1, 1, {"scale": 1.0, "has_cls": False})
    assert call.on(backend)[0].tolist() == [[favourite]]


@pytest.mark.parametrize("loud", [0, 63, 127, 128, 299])
def test_every_query_has_its_say(backend, rng, loud):
    """All queries are indifferent but one, wherever it stands among the blocks of queries."""
    queries = torch.zeros(1, 2, 300, 8)
    queries[:, :, loud] = 3
    keys = normal(rng, 1, 2, 300, 8)
    call = Call("select_qk", {"queries": queries, "keys": keys}, 5, 1, {"scale": 1.0, "has_cls": False})
    oracle.check(call, call.on(backend))


@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "mean"])
@pytest.mark.parametrize("S", [33, 70, 300])
def test_logits_far_below_zero(backend, rng, S, has_cls):
    """All of them, so that a zero in a block's padding would be the row's maximum."""
    queries = torch.full((1, 2, S, 16), 20.0)
    keys = -20 - torch.rand(1, 2, S, 16, generator=rng) / 10
    call = Call("select_qk", {"queries": queries, "keys": keys}, 5, 3, {"scale": 0.25, "has_cls": has_cls})
    oracle.check(call, call.on(backend))


@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "mean"])
def test_keys_without_channels(backend, rng, has_cls):
    """All logits are zero, also where an earlier call left something else in memory."""
    for D in (32, 0, 32, 0):
        shape = Shape(B=3, S=50, C=4, H=4, D=D, k=5, m=3, has_cls=has_cls)
        indices, _ = random_call("select_qk", rng, shape).on(backend)
        assert D or indices.tolist() == [[0, 1, 2, 3, 4]] * 3
