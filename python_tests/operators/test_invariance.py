"""The same image gives the same bits: alone, in any batch, in any order, run after run, at any number of threads."""

from __future__ import annotations

import pytest
import torch
from support.backends import CPU
from support.inputs import (
    BF16,
    DECIDING,
    DTYPES,
    F16,
    F32,
    OPS,
    ZIPPING,
    Call,
    Shape,
    dtype_name,
    nearly_tied,
    random_call,
)

SHAPES = (
    Shape(B=7, S=130, C=72, H=4, D=40, k=17, m=8),
    Shape(B=3, S=201, C=33, H=3, D=33, k=20, m=40, has_cls=False),
    Shape(B=3, S=577, C=264, H=4, D=64, k=54, m=10),
    Shape(B=3, S=100, C=16, H=16, D=24, k=40, m=16, has_cls=False),  # many heads
)


def _as_it_is(call: Call) -> Call:
    return call


OPS_AND_VALUES = pytest.mark.parametrize(
    ("op", "values"), [(op, _as_it_is) for op in OPS] + [(op, nearly_tied) for op in DECIDING]
)


def images(call: Call, which: list[int]) -> Call:
    """The call on some of its images, in the order given."""
    return call.with_tensors(**{name: x[which] for name, x in call.tensors.items()})


def assert_same(actual, expected) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@OPS_AND_VALUES
def test_any_batch(bitwise_backend, rng, op, shape, dtype, values):
    """Alone, in pairs, and many times in a batch in reversed order."""
    call = values(random_call(op, rng, shape, (dtype, dtype, dtype)))
    together = call.on(bitwise_backend)
    for b in range(shape.B):
        assert_same(images(call, [b]).on(bitwise_backend), [x[[b]] for x in together])
    last = shape.B - 1
    for which in ([0, last], [*range(last, -1, -1), 1, 1, 1]):
        assert_same(images(call, which).on(bitwise_backend), [x[which] for x in together])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@OPS_AND_VALUES
def test_run_to_run(bitwise_backend, rng, op, shape, values):
    call = values(random_call(op, rng, shape, (F16, BF16, F32)))
    first = call.on(bitwise_backend)
    for _ in range(5):
        assert_same(call.on(bitwise_backend), first)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=dtype_name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@OPS_AND_VALUES
def test_any_number_of_threads(rng, threads, op, shape, dtype, values):
    """One image alone as well: its work may be shared out differently from a batch's."""
    call = values(random_call(op, rng, shape, (dtype, dtype, dtype)))
    alone = images(call, [0])
    threads(1)
    expected, expected_alone = call.on(CPU), alone.on(CPU)
    for number in (2, 3, 8):
        threads(number)
        assert_same(call.on(CPU), expected)
        assert_same(alone.on(CPU), expected_alone)


@pytest.mark.parametrize("tokens_of_last_target", [0, 3, 200, 240])
def test_merge_by_any_number_of_threads_however_uneven_the_targets(rng, threads, tokens_of_last_target):
    """Threads share an image's rows, or its channels where a few targets take most of the tokens."""
    S, k, m = 301, 20, 30
    remaining = torch.arange(k, S)
    assignment = torch.full((1, S), k + m - 1)
    assignment[0, :k] = torch.arange(k)
    merged_elsewhere = torch.randint(k, k + m, (S - k - tokens_of_last_target,), generator=rng)
    assignment[0, remaining[tokens_of_last_target:]] = merged_elsewhere
    assignment[0, remaining[:: (S - k) // m][:m]] = torch.arange(k, k + m)
    call = Call("merge", {"x": torch.randn(1, S, 200, generator=rng), "assignment": assignment}, k, m)
    threads(1)
    expected = call.on(CPU)
    for number in (2, 3, 8):
        threads(number)
        assert_same(call.on(CPU), expected)


@pytest.mark.parametrize("op", ZIPPING + DECIDING)
def test_results_do_not_depend_on_the_neighbours_of_a_long_image(bitwise_backend, rng, op):
    """More images than threads, so that one thread works on several with the same scratch."""
    shape = Shape(B=40, S=60, C=16, H=2, D=16, k=9, m=4)
    call = nearly_tied(random_call(op, rng, shape))
    together = call.on(bitwise_backend)
    for b in (0, 13, 39):
        assert_same(images(call, [b]).on(bitwise_backend), [x[[b]] for x in together])


@pytest.mark.parametrize("op", OPS)
def test_after_other_sizes(bitwise_backend, rng, op):
    """Nothing is left over from a call on a larger or smaller problem."""
    call = random_call(op, rng, SHAPES[0])
    first = call.on(bitwise_backend)
    for shape in (SHAPES[2], Shape(B=1, S=9, C=3, H=1, D=2, k=2, m=1), SHAPES[1]):
        random_call(op, rng, shape).on(bitwise_backend)
        assert_same(call.on(bitwise_backend), first)


@pytest.mark.parametrize("op", ["zip", "select"])
def test_cls_rows_alone_decide_as_the_whole_attention_does(bitwise_backend, rng, op):
    call = nearly_tied(random_call(op, rng, SHAPES[0], (F32, F32, BF16)))
    rows = call.with_tensors(attn=call.tensors["attn"][:, :, 0])
    assert_same(rows.on(bitwise_backend), call.on(bitwise_backend))
