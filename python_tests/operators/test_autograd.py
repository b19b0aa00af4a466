"""Gradients: each operator is linear in its first argument, the decision given, and has gradients in nothing else."""

from __future__ import annotations

import pytest
import torch
from support import oracle
from support.inputs import (
    BF16,
    CARRYING,
    DTYPES,
    F32,
    MERGE_WORDS,
    OPS,
    SMALL,
    ZIPPING,
    Shape,
    dtype_name,
    normal,
    random_call,
)
from support.torch_checks import TRANSFORMS, check_derivatives, check_transform, differentiable
from torch import Tensor
from torch.autograd import forward_ad

from visionzip_ext import reference

SHAPES = (
    Shape(B=2, S=11, C=2, H=2, D=4, k=4, m=3),
    Shape(B=1, S=9, C=2, H=2, D=4, k=4, m=0),
    Shape(B=1, S=12, C=2, H=2, D=4, k=4, m=6, has_cls=False),
    Shape(B=1, S=5, C=3, H=2, D=4, k=5, m=0),
    Shape(B=1, S=9, C=2, H=2, D=4, k=0, m=2, has_cls=False),
)
FIRST = {"zip": "hidden", "zip_qk": "hidden", "merge": "x", "merge_backward": "grad"}


@pytest.mark.filterwarnings("ignore:Input #[01] requires gradient and is not a double precision")
@pytest.mark.parametrize("merge", MERGE_WORDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", FIRST)
def test_gradcheck_and_gradgradcheck(dispatched_backend, rng, op, shape, merge):
    check_derivatives(random_call(op, rng, shape, merge=merge), dispatched_backend)


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching rule")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("op", FIRST)
def test_forward_mode_and_torch_func(dispatched_backend, rng, op, transform):
    check_transform(random_call(op, rng, SHAPES[0], merge="mean"), dispatched_backend, transform)


@pytest.mark.parametrize("op", ZIPPING)
def test_a_decision_has_no_tangent(dispatched_backend, rng, op):
    """Tangents of all inputs: only that of hidden goes on, and to the tokens alone."""
    call = random_call(op, rng, SMALL)
    with forward_ad.dual_level():
        dual = call.with_each(lambda x: forward_ad.make_dual(x, torch.ones_like(x)))
        tangents = [forward_ad.unpack_dual(x).tangent for x in dual.on(dispatched_backend)]
        del dual.tensors["hidden"]
        others = call.with_tensors(**dual.tensors).on(dispatched_backend)
        assert all(forward_ad.unpack_dual(x).tangent is None for x in others)
    assert tangents[0] is not None
    assert tangents[1:] == [None, None]


@pytest.mark.parametrize("merge", MERGE_WORDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradcheck_of_the_reference(rng, shape, merge):
    """The reference differentiates by plain autograd, in float64."""
    assignment = random_call("merge", rng, shape).tensors["assignment"]
    x = torch.randn(shape.B, shape.S, shape.C, generator=rng, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(shape.B, shape.k + shape.m, shape.C, generator=rng, dtype=torch.float64)

    def merged(x: Tensor) -> Tensor:
        return reference.merge(x, assignment, shape.k, shape.m, merge)

    assert torch.autograd.gradcheck(merged, x)
    (expected,) = torch.autograd.grad(merged(x), x, grad)
    adjoint = reference.merge_backward(grad, assignment, shape.k, shape.m, merge)
    torch.testing.assert_close(adjoint, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("merge", MERGE_WORDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("op", ZIPPING)
def test_gradient_of_hidden(dispatched_backend, rng, op, dtype, merge):
    shape = Shape(B=3, S=130, C=40, H=4, D=24, k=17, m=8)
    call = random_call(op, rng, shape, (dtype, BF16, F32), merge=merge)
    hidden = call.tensors["hidden"].requires_grad_()
    tokens, indices, assignment = call.on(dispatched_backend)
    grad = normal(rng, *tokens.shape, dtype=dtype)
    tokens.backward(grad)
    oracle.check_merge_backward(hidden.grad, grad, assignment, call.k, call.m, merge)
    assert not indices.requires_grad
    assert not assignment.requires_grad


@pytest.mark.parametrize("op", ZIPPING)
def test_gradient_agrees_with_that_of_the_reference(dispatched_backend, rng, op):
    call = random_call(op, rng, SMALL)
    hidden = call.tensors["hidden"].requires_grad_()
    tokens, _, assignment = call.on(dispatched_backend)
    weights = normal(rng, *tokens.shape)
    (ours,) = torch.autograd.grad((tokens.sin() * weights).sum(), hidden)
    expected = reference.merge(hidden, assignment, call.k, call.m)
    (theirs,) = torch.autograd.grad((expected.sin() * weights).sum(), hidden)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("merge", MERGE_WORDS)
@pytest.mark.parametrize("op", CARRYING)
def test_second_derivative(dispatched_backend, rng, op, merge):
    """d2/dx2 of a cubic of a linear function: through the operator, its adjoint, and the operator again."""
    call = random_call(op, rng, SMALL, merge=merge)
    first, function = differentiable(call, dispatched_backend)
    matrix = oracle.weights(call.tensors["assignment"], call.k, call.m, merge).float()
    matrix = matrix if op == "merge" else matrix.mT
    seed = normal(rng, *first.shape)
    seconds = []
    for linear_map in (function, lambda x: matrix @ x):
        (gradient,) = torch.autograd.grad((linear_map(first) ** 3).sum(), first, create_graph=True)
        seconds.append(torch.autograd.grad(gradient, first, seed)[0])
    torch.testing.assert_close(*seconds, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", OPS)
def test_keys_and_attention_have_no_gradient(dispatched_backend, rng, op):
    """A decision has no gradient: what only the decision depends on does not make the result require one."""
    call = random_call(op, rng, SMALL)
    others = {name: x.requires_grad_() for name, x in call.tensors.items() if name not in (FIRST.get(op), "assignment")}
    for result in call.with_tensors(**others).on(dispatched_backend):
        assert not result.requires_grad


@pytest.mark.parametrize("op", ZIPPING)
def test_gradient_of_hidden_leaves_keys_without(dispatched_backend, rng, op):
    call = random_call(op, rng, SMALL)
    for x in call.tensors.values():
        x.requires_grad_()
    call.on(dispatched_backend)[0].sum().backward()
    assert call.tensors["hidden"].grad is not None
    assert all(x.grad is None for name, x in call.tensors.items() if name != "hidden")


@pytest.mark.parametrize("op", FIRST)
def test_no_graph_where_none_is_wanted(dispatched_backend, rng, op):
    call = random_call(op, rng, SMALL)
    first, function = differentiable(call, dispatched_backend)
    with torch.no_grad():
        without = function(first)
    with torch.inference_mode():
        inference = function(first)
    assert not without.requires_grad
    assert inference.is_inference()
    assert torch.equal(without, function(first))
    assert torch.equal(without, inference)


def test_a_lossless_part_does_not_leak_into_the_rest(dispatched_backend, rng):
    """Only the tokens behind the rows that a loss uses receive a gradient."""
    call = random_call("zip", rng, SMALL)
    hidden = call.tensors["hidden"].requires_grad_()
    tokens, _, assignment = call.on(dispatched_backend)
    tokens[:, SMALL.k].sum().backward()
    assert torch.equal((hidden.grad != 0).all(-1), assignment == SMALL.k)


def test_checkpointing(dispatched_backend, rng):
    call = random_call("zip_qk", rng, SMALL)
    first, function = differentiable(call, dispatched_backend)
    direct = torch.autograd.grad(function(first).square().sum(), first)
    again = torch.utils.checkpoint.checkpoint(function, first, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(again.square().sum(), first)[0], direct[0])


@pytest.mark.parametrize("op", FIRST)
def test_gradient_under_compile(dispatched_backend, rng, op):
    call = random_call(op, rng, SMALL)
    first, function = differentiable(call, dispatched_backend)
    loss = lambda linear_map, x: linear_map(x).sin().sum()  # noqa: E731
    (eager,) = torch.autograd.grad(loss(function, first), first)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    (graph,) = torch.autograd.grad(loss(compiled, first), first)
    assert torch.equal(eager, graph)
