"""policy="distinct" and keep_cls=False, for every operator that decides, and what a merge makes of such decisions."""

from __future__ import annotations

import math
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from support import oracle, packed
from support.backends import CPU, REFERENCE
from support.bad_input import fake_tensors, fallback, function, torch_ops
from support.inputs import (
    BF16,
    CARRYING,
    DECIDING,
    DTYPES,
    F32,
    MERGE_WORDS,
    OPS,
    ZIPPING,
    Call,
    Shape,
    dtype_name,
    nearly_tied,
    normal,
    random_call,
)
from support.packed import PACKED_OPS, SOURCES, Mix, random_packed_call
from test_invariance import assert_same, images
from test_properties import Spice
from torch import Tensor

import visionzip_ext

INF, NAN = math.inf, math.nan

SHAPES = (
    Shape(B=2, S=577, C=24, H=4, D=64, k=54, m=0, policy="distinct"),  # CLIP ViT-L/14-336
    Shape(B=3, S=130, C=20, H=3, D=40, k=17, m=8, policy="distinct"),
    Shape(B=3, S=130, C=20, H=3, D=40, k=16, m=8, policy="distinct", keep_cls=False),
    Shape(B=3, S=130, C=20, H=3, D=40, k=17, m=8, has_cls=False, policy="distinct"),
    Shape(B=3, S=130, C=20, H=3, D=40, k=16, m=8, keep_cls=False),
    Shape(B=2, S=40, C=8, H=2, D=33, k=40, m=0, policy="distinct"),  # all of them
    Shape(B=2, S=40, C=8, H=2, D=33, k=39, m=0, policy="distinct", keep_cls=False),
    Shape(B=2, S=40, C=8, H=2, D=33, k=0, m=39, policy="distinct", keep_cls=False),  # every patch a target
    Shape(B=2, S=40, C=8, H=2, D=33, k=0, m=7, keep_cls=False),
    Shape(B=2, S=40, C=8, H=2, D=33, k=1, m=0, policy="distinct"),  # CLS alone
    Shape(B=2, S=2, C=8, H=1, D=4, k=1, m=0, policy="distinct", keep_cls=False),
    Shape(B=2, S=2, C=8, H=1, D=4, k=0, m=1, keep_cls=False),
    Shape(B=2, S=1, C=8, H=1, D=4, k=1, m=0, policy="distinct"),
    Shape(B=2, S=45, C=1, H=3, D=1, k=9, m=4, policy="distinct"),  # keys that are all equal, or opposite
    Shape(B=2, S=45, C=3, H=2, D=0, k=9, m=4, policy="distinct"),  # keys without channels
    Shape(B=0, S=41, C=20, H=3, D=16, k=7, m=5, policy="distinct", keep_cls=False),
)
MIXES = (
    Mix((41, 7, 130, 12), (7, 3, 17, 4), (5, 2, 8, 0), policy="distinct"),
    Mix((41, 7, 130, 12), (7, 3, 17, 4), (5, 2, 8, 0), has_cls=True, policy="distinct"),
    Mix((41, 7, 130, 12), (7, 3, 17, 4), (5, 2, 8, 0), has_cls=True, policy="distinct", keep_cls=False),
    Mix((41, 7, 130, 0), (0, 6, 0, 0), (5, 0, 0, 0), has_cls=True, keep_cls=False),  # no row, no patch left, dropped
    Mix((300, 30, 30), (40, 5, 5), (0, 3, 3), H=2, D=24, policy="distinct"),
    Mix((41, 7, 30), (7, 3, 9), (5, 2, 4), group=4, policy="distinct"),
)

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_mix = pytest.mark.parametrize("mix", MIXES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


def keep(backend, scores: Tensor, keys: Tensor, k: int, *, has_cls: bool = False, keep_cls: bool = True) -> list[int]:
    """What "distinct" keeps of one image of finished scores (S,) and keys (S, D)."""
    options = {"has_cls": has_cls, "policy": "distinct", "keep_cls": keep_cls}
    indices, assignment = Call("select", {"keys": keys[None], "attn": scores[None]}, k, 0, options).on(backend)
    assert torch.equal(assignment[0, indices[0]], torch.arange(k))
    assert (assignment >= 0).sum() == k
    return indices[0].tolist()


# --- any call --------------------------------------------------------------------------------------------------------


@every_dtype
@every_shape
@pytest.mark.parametrize("op", OPS)
def test_any_operator(backend, rng, op, shape, dtype):
    for attn, merge in (("rows", "residual"), ("scores", "mean"), ("matrix", "mean")):
        call = random_call(op, rng, shape, (dtype,) * 3, attn=attn, merge=merge, lse=merge == "mean")
        oracle.check(call, call.on(backend))


@pytest.mark.parametrize("source", SOURCES)
@every_mix
@pytest.mark.parametrize("op", PACKED_OPS)
def test_any_packed_operator(backend, rng, op, mix, source):
    call = random_packed_call(op, rng, mix, (BF16, F32), source=source)
    packed.check(call, call.on(backend))


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Any that the specification allows with either policy, with and without CLS and its row."""
    cls = draw(st.sampled_from([(False, True), (True, True), (True, False)]))
    S = draw(st.integers(1 if cls[1] else 2, 100))
    room = S if cls[1] else S - 1
    k = draw(st.integers(1 if cls == (True, True) else 0, room))
    m = draw(st.integers(0 if k else 1, room - k))
    sizes = {"B": st.integers(1, 3), "C": st.integers(1, 20), "H": st.integers(1, 3), "D": st.integers(1, 40)}
    policy = draw(st.sampled_from(["distinct", "distinct", "attention"]))
    has_cls, keep_cls = cls
    drawn = {name: draw(size) for name, size in sizes.items()}
    return Shape(S=S, k=k, m=m, has_cls=has_cls, policy=policy, keep_cls=keep_cls, **drawn)


@settings(max_examples=150)
@given(data=st.data(), shape=shapes(), op=st.sampled_from(DECIDING + ZIPPING))
def test_any_values(backend, data, shape, op):
    """With ties, NaN, infinities and keys of length zero."""
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    dtypes = data.draw(st.tuples(*[st.sampled_from(DTYPES)] * 3))
    call = random_call(op, rng, shape, dtypes, attn=data.draw(st.sampled_from(["rows", "scores"])))
    spice = data.draw(st.builds(Spice, *[st.booleans()] * 5))
    tensors = {"keys": spice.on_keys(call.tensors["keys"], rng)}
    if "attn" in call.tensors:
        tensors["attn"] = spice.on_attention(call.tensors["attn"], rng)
    call = call.with_tensors(**tensors)
    oracle.check(call, call.on(backend))


# --- the rule --------------------------------------------------------------------------------------------------------


def test_what_is_like_a_kept_token_comes_last(backend):
    """Two directions: the best of each, then the rest, however high its score."""
    scores = torch.tensor([0.1, 9.0, 8.0, 7.0, 0.2, 6.0])
    keys = torch.tensor([[0.0, 3.0], [2.0, 0.0], [1.0, 0.0], [5.0, 0.0], [0.0, 0.5], [1.0, 0.0]])
    assert keep(backend, scores, keys, 1) == [1]
    assert keep(backend, scores, keys, 2) == [1, 4]
    assert keep(backend, scores, keys, 3) == [0, 1, 4]  # both of their products are zero: the lower index
    assert keep(backend, scores, keys, 4) == [0, 1, 2, 4]


def test_opposite_keys_do_not_make_a_token_more_than_distinct(backend):
    """c never falls below 0: a similarity of -1 is worth as much as none."""
    keys = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    assert keep(backend, torch.tensor([3.0, 1.0, 1.1]), keys, 2) == [0, 2]


def test_part_of_a_score_is_left(backend):
    """A similarity of 0.6 leaves 0.4 of the score."""
    keys = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, -1.0]])
    assert keep(backend, torch.tensor([3.0, 1.0, 0.41]), keys, 2) == [0, 2]
    assert keep(backend, torch.tensor([3.0, 1.0, 0.39]), keys, 2) == [0, 1]


def test_the_highest_similarity_to_any_kept_token_counts(backend):
    """Not the sum, and not the last one's."""
    keys = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.6, 0.5, 0.62], [0.8, 0.0, 0.6]])
    unit = keys / keys.norm(dim=-1, keepdim=True)
    left = 1 - (unit @ unit[:2].T).amax(1)
    scores = torch.tensor([9.0, 8.0, 1.0, float(left[2] / left[3]) * 1.01])
    assert keep(backend, scores, keys, 3) == [0, 1, 3]
    scores[3] *= 0.98
    assert keep(backend, scores, keys, 3) == [0, 1, 2]


def test_cls_is_no_step(backend):
    """Its key, here that of the best patch, does not count, whether it has a row or not."""
    keys = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    scores = torch.tensor([0.0, 3.0, 1.0])
    assert keep(backend, scores, keys, 2, has_cls=True) == [0, 1]
    assert keep(backend, scores, keys, 1, has_cls=True, keep_cls=False) == [1]
    assert keep(backend, scores, keys, 2, has_cls=True, keep_cls=False) == [1, 2]


def test_a_keys_length_does_not_matter(backend, rng):
    keys, scores = normal(rng, 60, 8), torch.rand(60, generator=rng)
    expected = keep(backend, scores, keys, 12)
    lengths = 2.0 ** torch.randint(-60, 60, (60, 1), generator=rng)
    assert keep(backend, scores, keys * lengths, 12) == expected
    for length in (2.0**-140, 2.0**120):  # whose squares float32 has not
        assert keep(backend, scores, keys.round() * length, 12) == keep(backend, scores, keys.round(), 12)


def test_no_product_falls_below_zero_by_rounding(backend, rng):
    """c is at most 1, though a unit key times itself may come out above: a kept one's twin is worth no less than 0."""
    keys = normal(rng, 64, 3, 33)
    keys[:, 1] = keys[:, 0]
    scores = torch.tensor([2.0, 1.0, 0.0]).expand(64, 3)
    call = Call("select", {"keys": keys, "attn": scores}, 2, 0, {"has_cls": False, "policy": "distinct"})
    assert call.on(backend)[0].tolist() == [[0, 1]] * 64


# --- ties, NaN, infinities, zero -------------------------------------------------------------------------------------


@pytest.mark.parametrize("S", [2, 17, 64, 577])
def test_equal_scores_of_unlike_keys_keep_the_first(backend, S):
    assert keep(backend, torch.full((S,), 0.25), torch.eye(S), S // 2) == list(range(S // 2))


@pytest.mark.parametrize("S", [2, 17, 64, 577])
def test_equal_scores_of_equal_keys_keep_the_first(backend, S):
    assert keep(backend, torch.full((S,), 0.25), torch.ones(S, 4), S // 2) == list(range(S // 2))


def test_minus_zero_ties_with_zero(backend):
    scores = torch.tensor([-1.0, -0.0, 0.0, -0.0, 0.0, -2.0])
    for k, expected in ((1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (5, [0, 1, 2, 3, 4])):
        assert keep(backend, scores, torch.eye(6), k) == expected


def test_a_negative_score_of_which_nothing_is_left_ties_with_zero(backend):
    """Times zero it is -0."""
    keys = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert keep(backend, torch.tensor([3.0, -1.0, 0.0]), keys, 2) == [0, 1]


@pytest.mark.parametrize("sign", [1, -1], ids=["+nan", "-nan"])
def test_nan_ranks_below_minus_infinity(backend, sign):
    nan = math.copysign(NAN, sign)
    scores = torch.tensor([nan, -INF, 1.0, nan, INF, -INF, -5.0, nan])
    order = [4, 2, 6, 1, 5, 0, 3, 7]
    for k in range(1, 9):
        assert keep(backend, scores, torch.eye(8), k) == sorted(order[:k])


def test_nothing_but_nan_keeps_the_first(backend):
    assert keep(backend, torch.full((40,), NAN), torch.eye(40), 7) == list(range(7))


def test_an_infinite_score_of_a_token_like_a_kept_one_is_nan(backend):
    """Infinity times zero, by the letter: below every number."""
    keys = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert keep(backend, torch.tensor([INF, INF, -3.0]), keys, 2) == [0, 2]


def test_negative_scores_follow_the_formula(backend):
    """What resembles a kept token loses part of a negative score, too, and so rises."""
    keys = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert keep(backend, torch.tensor([-1.0, -3.0, -2.0]), keys, 2) == [0, 1]


@pytest.mark.parametrize("value", [0.0, NAN, INF, -INF])
def test_keys_without_a_direction_resemble_nothing(backend, value):
    """Zero, or with a channel that is no number: neither each other nor what is kept."""
    keys = torch.ones(6, 3)
    keys[2:5, 1] = value
    if value == 0:
        keys[2:5] = 0
    scores = torch.tensor([9.0, 8.0, 0.3, 0.2, 0.1, 7.0])
    assert keep(backend, scores, keys, 4) == [0, 2, 3, 4]


@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "mean"])
def test_all_of_them(backend, rng, has_cls):
    """k = S: every token, whatever the scores and the keys."""
    scores = torch.where(torch.rand(50, generator=rng) < 0.3, NAN, torch.rand(50, generator=rng))
    assert keep(backend, scores, torch.ones(50, 3), 50, has_cls=has_cls) == list(range(50))


def test_a_reference_in_float64_agrees(rng):
    shape = Shape(B=4, S=90, C=4, H=2, D=24, k=20, m=6, policy="distinct")
    call = random_call("select", rng, shape, attn="scores")
    wide = call.with_each(lambda x: x.double())
    assert_same(call.on(REFERENCE), wide.on(REFERENCE))


# --- CLS without a row -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["attention", "distinct"])
@pytest.mark.parametrize("op", ZIPPING)
def test_the_row_of_cls_is_a_patchs(backend, rng, op, policy):
    """k patches with or without it: the same patches, and with m = 0 the same rows behind CLS's."""
    shape = Shape(B=2, S=80, C=6, H=2, D=16, k=12, m=0, policy=policy)
    call = random_call(op, rng, shape)
    with_row = call.on(backend)
    without = replace(call, k=11, options={**call.options, "keep_cls": False}).on(backend)
    assert torch.equal(without[0], with_row[0][:, 1:])
    assert torch.equal(without[1], with_row[1][:, 1:])
    assert (without[2][:, 0] == -1).all()


@pytest.mark.parametrize("policy", ["attention", "distinct"])
@pytest.mark.parametrize("merge", MERGE_WORDS)
def test_an_image_decides_as_without_cls(backend, rng, policy, merge):
    """From finished scores: as the patches by themselves."""
    shape = Shape(B=2, S=61, C=6, H=2, D=16, k=9, m=7, policy=policy, keep_cls=False)
    call = random_call("zip", rng, shape, attn="scores", merge=merge)
    tensors = call.tensors
    patches = call.with_tensors(
        hidden=tensors["hidden"][:, 1:], keys=tensors["keys"][:, :, 1:], attn=tensors["attn"][:, 1:]
    )
    patches = replace(patches, options={"has_cls": False, "policy": policy, "merge": merge})
    tokens, indices, assignment = call.on(backend)
    of_patches = patches.on(backend)
    torch.testing.assert_close(tokens, of_patches[0], rtol=0, atol=0 if backend.bitwise else 1e-6)
    assert torch.equal(indices, of_patches[1] + 1)
    assert torch.equal(assignment[:, 1:], of_patches[2])


@pytest.mark.parametrize("op", CARRYING)
@pytest.mark.parametrize("place", [1, 7])
def test_no_other_token_may_lack_a_row(rng, op, place):
    shape = Shape(B=2, S=30, C=4, H=1, D=4, k=5, m=4, keep_cls=False)
    call = random_call(op, rng, shape)
    assignment = call.tensors["assignment"].clone()
    assignment[1, place] = -1
    with pytest.raises(RuntimeError, match=rf"visionzip::{op}: assignment\[1\]\[{place}\] is -1; expected a decision"):
        call.with_tensors(assignment=assignment).on(CPU)


@pytest.mark.parametrize("op", CARRYING)
def test_no_room_for_a_dropped_cls(rng, op):
    """k + m = S, and token 0 has no row."""
    call = random_call(op, rng, Shape(B=1, S=9, C=4, H=1, D=4, k=5, m=4))
    assignment = call.tensors["assignment"].clone()
    assignment[0, 0] = -1
    with pytest.raises(RuntimeError, match=rf"visionzip::{op}: assignment\[0\]\[0\] is -1; expected a decision"):
        call.with_tensors(assignment=assignment).on(CPU)


# --- the same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [lambda call: call, nearly_tied], ids=["random", "nearly_tied"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=dtype_name)
@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
@pytest.mark.parametrize("op", DECIDING)
def test_any_batch(bitwise_backend, rng, op, shape, dtype, values):
    call = values(random_call(op, rng, shape, (dtype,) * 3))
    together = call.on(bitwise_backend)
    for b in range(shape.B):
        assert_same(images(call, [b]).on(bitwise_backend), [x[[b]] for x in together])
    which = [*range(shape.B - 1, -1, -1), 1, 1, 1]
    assert_same(images(call, which).on(bitwise_backend), [x[which] for x in together])


@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
@pytest.mark.parametrize("op", DECIDING + ZIPPING)
def test_any_number_of_threads(rng, threads, op, shape):
    call = nearly_tied(random_call(op, rng, shape))
    alone = images(call, [0])
    threads(1)
    expected, expected_alone = call.on(CPU), alone.on(CPU)
    for number in (2, 3, 8):
        threads(number)
        assert_same(call.on(CPU), expected)
        assert_same(alone.on(CPU), expected_alone)


@pytest.mark.parametrize("mix", [mix for mix in MIXES if mix.group == 1], ids=str)
@pytest.mark.parametrize("source", ["queries", "scores"])
def test_a_packed_image_as_alone(bitwise_backend, rng, mix, source):
    call = random_packed_call("select_packed", rng, mix, source=source)
    results = call.on(bitwise_backend)
    for i in range(len(mix.lengths)):
        if mix.k[i] + mix.m[i]:
            assert_same(packed.of_image(call, i, results), packed.image(call, i).on(bitwise_backend))


# --- what stands around the operators --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES[1:5], ids=str)
@pytest.mark.parametrize("op", DECIDING + ZIPPING)
def test_opcheck(rng, op, shape):
    call = random_call(op, rng, replace(shape, S=30, k=6, m=4), attn="scores")
    tensors = {name: x.requires_grad_(name == "hidden") for name, x in call.tensors.items()}
    call = call.with_tensors(**tensors)
    torch.library.opcheck(getattr(torch.ops.visionzip, op).default, call.args, call.kwargs)


@pytest.mark.parametrize("mix", [MIXES[1], MIXES[2]], ids=str)
@pytest.mark.parametrize("op", ["select_packed", "zip_packed"])
def test_opcheck_packed(rng, op, mix):
    call = random_packed_call(op, rng, mix)
    torch.library.opcheck(getattr(torch.ops.visionzip, op).default, call.args, call.kwargs)


@pytest.mark.parametrize("merge", MERGE_WORDS)
@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
def test_gradients(rng, shape, merge):
    """hidden's is merge_backward by the decision, scores and keys have none."""
    call = random_call("zip", rng, shape, merge=merge)
    tensors = {name: x.clone().requires_grad_() for name, x in call.tensors.items()}
    tokens, _, assignment = call.with_tensors(**tensors).through(torch.ops.visionzip)
    grad = normal(rng, *tokens.shape)
    tokens.backward(grad)
    expected = torch.ops.visionzip.merge_backward(grad, assignment, call.k, call.m, merge=merge)
    assert torch.equal(tensors["hidden"].grad, expected)
    assert tensors["keys"].grad is None
    assert tensors["attn"].grad is None
    if shape.has_cls and not shape.keep_cls:
        assert (tensors["hidden"].grad[:, 0] == 0).all()


def test_forward_mode_and_func(rng):
    """Of a decision whose CLS has no row."""
    call = random_call("zip", rng, Shape(B=2, S=30, C=4, H=2, D=8, k=5, m=4, policy="distinct", keep_cls=False))
    hidden, tangent = call.tensors["hidden"], normal(rng, 2, 30, 4)

    def tokens_of(x: Tensor) -> Tensor:
        return call.with_tensors(hidden=x).through(torch.ops.visionzip)[0]

    assignment = call.on(CPU)[2]
    expected = torch.ops.visionzip.merge(tangent, assignment, call.k, call.m)
    tokens, of_tangent = torch.func.jvp(tokens_of, (hidden,), (tangent,))
    assert torch.equal(tokens, tokens_of(hidden))
    assert torch.equal(of_tangent, expected)
    grad = torch.func.grad(lambda x: (tokens_of(x) * expected).sum())(hidden)
    assert torch.equal(grad, torch.ops.visionzip.merge_backward(expected, assignment, call.k, call.m))


@pytest.mark.parametrize("shape", SHAPES[1:5], ids=str)
def test_compiled_and_exported(rng, shape):
    call = random_call("zip_qk", rng, shape)

    class Zip(torch.nn.Module):
        def forward(self, hidden, queries, keys):
            return tuple(visionzip_ext.zip_qk(hidden, queries, keys, call.k, call.m, **shape.rule))

    inputs = tuple(call.tensors.values())
    expected = Zip()(*inputs)
    torch._dynamo.reset()
    assert_same(torch.compile(Zip(), fullgraph=True, backend="aot_eager")(*inputs), expected)
    assert_same(torch.export.export(Zip(), inputs).module()(*inputs), expected)


# --- bad input -------------------------------------------------------------------------------------------------------

GOOD = Shape(B=2, S=10, C=6, H=2, D=4, k=3, m=2)
WAYS_IN = pytest.mark.parametrize("way_in", [function, torch_ops, fallback, fake_tensors])


def error_of(way_in, call) -> str:
    with pytest.raises(RuntimeError) as caught:
        way_in(call)
    return str(caught.value).splitlines()[0]


def any_call(op: str, rng: torch.Generator):
    if op.endswith("_packed"):
        return random_packed_call(op, rng, Mix((10, 8), (3, 3), (2, 2), has_cls=True))
    return random_call(op, rng, GOOD)


@WAYS_IN
@pytest.mark.parametrize("op", [*DECIDING, *ZIPPING, "select_packed", "zip_packed"])
def test_words_and_flags_that_are_refused(rng, op, way_in):
    call = any_call(op, rng)
    for change, words in (
        ({"policy": "dpp"}, 'policy is "dpp"; expected "attention" or "distinct"'),
        (
            {"has_cls": False, "keep_cls": False},
            "keep_cls is false and has_cls is false; expected keep_cls = true where no token is CLS",
        ),
    ):
        changed = replace(call, options={**call.options, **change})
        assert error_of(way_in, changed) == f"visionzip::{op}: {words}"


@WAYS_IN
@pytest.mark.parametrize(("k", "m"), [(10, 0), (6, 4), (0, 0), (-1, 3), (2**63 - 1, 1)])
@pytest.mark.parametrize("op", [*DECIDING, *ZIPPING])
def test_budgets_without_room_for_cls(rng, op, k, m, way_in):
    call = random_call(op, rng, replace(GOOD, keep_cls=False))
    assert error_of(way_in, replace(call, k=k, m=m)) == (
        f"visionzip::{op}: k = {k} and m = {m} do not fit S = 10 tokens; expected k >= 0, m >= 0 and "
        "1 <= k + m <= 9 (CLS takes no row)"
    )


@pytest.mark.parametrize("way_in", [function, torch_ops, fallback])
@pytest.mark.parametrize("op", ["select_packed", "zip_packed"])
def test_packed_budgets_without_room_for_cls(rng, op, way_in):
    call = random_packed_call(op, rng, Mix((10, 5), (3, 3), (2, 1), has_cls=True, keep_cls=False))
    way_in(call)
    assert error_of(way_in, replace(call, m=[2, 2])) == (
        f"visionzip::{op}: sequence 1: k = 3 and m = 2 do not fit S = 5 tokens; expected k + m <= 4 (CLS takes no row)"
    )


@pytest.mark.parametrize("keep_cls", [None, 1, "yes"])
@pytest.mark.parametrize("op", [*DECIDING, *ZIPPING, "select_packed", "zip_packed"])
def test_keep_cls_is_true_or_false(rng, op, keep_cls):
    call = any_call(op, rng)
    call.options["keep_cls"] = keep_cls
    with pytest.raises(RuntimeError, match=f"visionzip::{op}: keep_cls is {keep_cls!r}; expected True or False"):
        function(call)
