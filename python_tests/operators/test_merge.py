"""Carrying a given decision out, and its adjoint: `merge` and `merge_backward`."""

from __future__ import annotations

import re

import pytest
import torch
from support import oracle
from support.backends import CPU
from support.inputs import (
    BF16,
    CARRYING,
    DTYPES,
    F16,
    F32,
    MERGE_WORDS,
    SHAPES,
    SMALL,
    Call,
    Shape,
    dtype_name,
    normal,
    random_assignment,
    random_call,
)

DROPPING = Shape(B=2, S=30, C=8, H=1, D=4, k=6, m=0)


@pytest.mark.parametrize("merge", MERGE_WORDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", CARRYING)
def test_every_shape(backend, rng, op, shape, dtype, merge):
    call = random_call(op, rng, shape, (dtype, F32, F32), merge=merge)
    oracle.check(call, call.on(backend))


@pytest.mark.parametrize("rest", [(), (1,), (3, 5), (2, 3, 4), (0,), (3, 0, 2)], ids=str)
@pytest.mark.parametrize("op", CARRYING)
def test_any_number_of_dimensions(backend, rng, op, rest):
    call = random_call(op, rng, SMALL)
    name = "x" if op == "merge" else "grad"
    rows = call.tensors[name].shape[1]
    call = call.with_tensors(**{name: normal(rng, SMALL.B, rows, *rest, dtype=BF16)})
    (out,) = call.on(backend)
    assert out.shape[2:] == rest
    oracle.check(call, (out,))


@pytest.mark.parametrize("C", [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 127, 129, 1023, 1025])
def test_every_width(backend, rng, C):
    """Channels that no vector width divides."""
    for op in CARRYING:
        for dtype in DTYPES:
            call = random_call(op, rng, Shape(B=2, S=31, C=C, H=1, D=4, k=5, m=4), (dtype, F32, F32))
            oracle.check(call, call.on(backend))


@pytest.mark.parametrize("merge", MERGE_WORDS)
def test_all_join_one_target(backend, rng, merge):
    """The longest sum, and beside it targets that nobody joined."""
    shape = Shape(B=1, S=1400, C=40, H=1, D=4, k=10, m=6)
    call = random_call("merge", rng, shape, merge=merge)
    assignment = call.tensors["assignment"]
    rest = (assignment[0] >= shape.k).nonzero().flatten()
    targets = rest[oracle.target_ranks(len(rest), shape.m)]
    assignment[0, rest] = shape.k + 4
    assignment[0, targets] = torch.arange(shape.k, shape.k + shape.m)
    (out,) = call.on(backend)
    oracle.check(call, (out,))
    alone = [0, 1, 2, 3, 5]
    assert torch.equal(out[0, shape.k :][alone], call.tensors["x"][0, targets[alone]]), "a target alone is itself"


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_error_is_at_most_twice_that_of_torch(backend, rng, dtype):
    """The same merge by index and mean in the same dtype, against float64."""
    shape = Shape(B=2, S=577, C=256, H=1, D=4, k=54, m=10)
    call = random_call("merge", rng, shape, (dtype, F32, F32))
    x, assignment = call.tensors["x"], call.tensors["assignment"]
    exact = oracle.weights(assignment, shape.k, shape.m, "residual") @ x.double()
    by_torch = oracle.weights(assignment, shape.k, shape.m, "residual").to(dtype) @ x
    (ours,) = call.on(backend)
    assert (ours - exact).abs().max() <= 2 * (by_torch - exact).abs().max()


def test_identity(backend, rng):
    """k = S, m = 0: the same tokens, in a tensor of their own."""
    x = normal(rng, 2, 19, 12, dtype=F16)
    call = Call("merge", {"x": x, "assignment": torch.arange(19).expand(2, 19)}, 19, 0, {"merge": "residual"})
    (out,) = call.on(backend)
    assert torch.equal(out, x)
    assert out.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("merge", MERGE_WORDS)
@pytest.mark.parametrize("shape", [SMALL, DROPPING], ids=str)
def test_a_token_that_is_no_number_spoils_its_own_row_only(backend, rng, shape, merge, poison):
    """A product with a one-hot matrix would multiply it by zero and spoil all rows."""
    call = random_call("merge", rng, shape, merge=merge)
    (clean,) = call.on(backend)
    for s in range(shape.S):
        x = call.tensors["x"].clone()
        x[0, s] = poison
        (out,) = call.with_tensors(x=x).on(backend)
        rows = torch.ones(shape.k + shape.m, dtype=torch.bool)
        row = int(call.tensors["assignment"][0, s])
        if row >= 0:
            rows[row] = False
            assert not out[0, row].isfinite().any()
        assert torch.equal(out[0, rows], clean[0, rows])
        assert torch.equal(out[1:], clean[1:])


@pytest.mark.parametrize("shape", [SMALL, DROPPING], ids=str)
def test_a_gradient_that_is_no_number_reaches_its_own_tokens_only(backend, rng, shape):
    call = random_call("merge_backward", rng, shape)
    (clean,) = call.on(backend)
    for row in range(shape.k + shape.m):
        grad = call.tensors["grad"].clone()
        grad[0, row] = float("nan")
        (out,) = call.with_tensors(grad=grad).on(backend)
        of_row = call.tensors["assignment"][0] == row
        assert out[0, of_row].isnan().all()
        assert torch.equal(out[0, ~of_row], clean[0, ~of_row])


def test_dropped_tokens_have_gradient_zero(backend, rng):
    call = random_call("merge_backward", rng, DROPPING)
    (out,) = call.on(backend)
    assert (out[call.tensors["assignment"] < 0] == 0).all()


@pytest.mark.parametrize("merge", MERGE_WORDS)
@pytest.mark.parametrize("shape", [SMALL, DROPPING], ids=str)
def test_backward_is_the_adjoint(backend, rng, shape, merge):
    """<merge(x), g> = <x, merge_backward(g)>."""
    forward = random_call("merge", rng, shape, merge=merge)
    grad = normal(rng, shape.B, shape.k + shape.m, shape.C)
    arguments = {"grad": grad, "assignment": forward.tensors["assignment"]}
    backward = Call("merge_backward", arguments, shape.k, shape.m, {"merge": merge})
    (tokens,), (received,) = forward.on(backend), backward.on(backend)
    left = (tokens.double() * grad.double()).sum()
    right = (forward.tensors["x"].double() * received.double()).sum()
    assert abs(left - right) <= 1e-5 * (tokens.double() * grad.double()).abs().sum()


@pytest.mark.parametrize("merge", MERGE_WORDS)
def test_sums_do_not_overflow_float16(backend, rng, merge):
    """The sum of 300 tokens of 1000 is beyond float16; their mean is not."""
    shape = Shape(B=1, S=320, C=16, H=1, D=4, k=4, m=1)
    call = random_call("merge", rng, shape, (F16, F32, F32), merge=merge)
    call = call.with_tensors(x=call.tensors["x"] + 1000)
    (out,) = call.on(backend)
    assert out.isfinite().all()
    oracle.check(call, (out,))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_the_result_rounds_to_even(backend, dtype):
    """Exact sums halfway between two numbers of the dtype."""
    if dtype == F32:
        one, half = 1.0, 2.0**-24
    else:
        one, half = 1.0, 2.0**-11 if dtype == F16 else 2.0**-8
    x = torch.tensor([[[one, one + 2 * half], [half, half]]], dtype=dtype)
    call = Call("merge", {"x": x, "assignment": torch.tensor([[0, 0]])}, 0, 1, {"merge": "residual"})
    assert call.on(backend)[0].flatten().tolist() == [one, one + 4 * half]


def _spoil(assignment: torch.Tensor, how: str) -> None:
    """Make a decision for SMALL no decision, in image 1."""
    k, m = SMALL.k, SMALL.m
    image = assignment[1]
    rest = (image >= k).nonzero().flatten()
    targets = rest[oracle.target_ranks(len(rest), m)]
    merging = [s for s in rest.tolist() if s not in targets.tolist()]
    if how == "beyond the last row":
        image[merging[0]] = k + m
    elif how == "far beyond":
        image[merging[-1]] = 2**40
    elif how == "below zero":
        image[merging[3]] = -2
    elif how == "dropped":
        image[merging[3]] = -1
    elif how == "a kept row twice":
        image[merging[-1]] = 3  # behind the last target, so that no target's rank gives it away
    elif how == "a kept row missing":
        image[(image == 2).nonzero()] = k + 1
    elif how == "a target that joins another":
        image[targets[2]] = k + 3
    else:
        raise ValueError(how)


@pytest.mark.parametrize(
    "how",
    [
        "beyond the last row",
        "far beyond",
        "below zero",
        "dropped",
        "a kept row twice",
        "a kept row missing",
        "a target that joins another",
    ],
)
@pytest.mark.parametrize("op", CARRYING)
def test_an_assignment_that_is_no_decision_raises(rng, op, how):
    """On the CPU: it would read or write beyond a row, or leave one empty."""
    call = random_call(op, rng, SMALL)
    _spoil(call.tensors["assignment"], how)
    where = r"assignment\[1\](\[\d+\] is -?\d+| names no token for row 2)"
    decision = f"expected a decision for k = {SMALL.k} and m = {SMALL.m}"
    with pytest.raises(RuntimeError, match=f"visionzip::{op}: {where}; {decision}"):
        call.on(CPU)


@pytest.mark.parametrize("op", CARRYING)
def test_an_assignment_of_another_budget_raises(rng, op):
    call = random_call(op, rng, SMALL)
    other = random_assignment(rng, Shape(B=SMALL.B, S=SMALL.S, C=1, H=1, D=1, k=SMALL.k + 2, m=SMALL.m - 2))
    with pytest.raises(RuntimeError, match=re.escape(f"k = {SMALL.k} and m = {SMALL.m}")):
        call.with_tensors(assignment=other).on(CPU)
