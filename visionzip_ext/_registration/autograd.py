"""Gradients: every operator that returns tokens is linear in its first argument once the decision is made.

The decision itself (indices, assignment) has no gradient. `merge_backward` is the adjoint of `merge` and the other way
round, so that gradients of any order exist, and in forward mode a tangent takes the way of the tensor that it is of.

`torch.library.register_autograd` takes no keyword-only tensor (`lse`), therefore the functions are registered at the
Autograd key directly.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from visionzip_ext._registration import torch_private

_LIBRARY = torch.library.Library("visionzip", "IMPL")


def _keep_linear_map(ctx: Any, linear_map: Any, adjoint: Any, k: Any, m: Any, merge: str, decision: tuple) -> None:
    """What backward and jvp need. `decision`: the assignment, and with packed sequences cu_seqlens."""
    ctx.save_for_backward(*decision)
    ctx.save_for_forward(*decision)
    ctx.linear_map, ctx.adjoint, ctx.sizes, ctx.merge = linear_map, adjoint, (k, m), merge


def _apply_linear_map(ctx: Any, tangent: Tensor) -> Tensor:
    # torch disables forward mode here, although under nested torch.func.jvp a tangent has a tangent, too.
    with torch_private.set_forward_mode_enabled(True):
        return ctx.linear_map(tangent, *ctx.saved_tensors, *ctx.sizes, merge=ctx.merge)


def _apply_adjoint(ctx: Any, grad: Tensor) -> Tensor:
    return ctx.adjoint(grad, *ctx.saved_tensors, *ctx.sizes, merge=ctx.merge)


class _Zip(torch.autograd.Function):
    """Runs `forward_op() -> (tokens, indices, assignment, ...)`; hidden's gradient comes through the assignment.

    `linear_map` applies the decision to a tensor, as `merge` does, and `adjoint` is its adjoint. `cu_seqlens`: one,
    with packed sequences.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        forward_op: Callable[[], tuple],
        linear_map: Any,
        adjoint: Any,
        k: Any,
        m: Any,
        merge: str,
        *cu_seqlens: Tensor,
    ) -> Any:
        tokens, indices, assignment, *row_starts = forward_op()
        _keep_linear_map(ctx, linear_map, adjoint, k, m, merge, (assignment, *cu_seqlens))
        ctx.decisions = 2 + len(row_starts)
        ctx.mark_non_differentiable(indices, assignment, *row_starts)
        ctx.set_materialize_grads(False)
        return tokens, indices, assignment, *row_starts

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        nothing = (None,) * (len(ctx.needs_input_grad) - 1)
        return (None if grad is None else _apply_adjoint(ctx, grad)), *nothing

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: Any) -> Any:
        nothing = (None,) * ctx.decisions
        return (None if tangent is None else _apply_linear_map(ctx, tangent)), *nothing


class _Linear(torch.autograd.Function):
    """Runs one of an adjoint pair, such as `merge` and `merge_backward`; its gradient is the other one.

    `decision`: the assignment, and with packed sequences cu_seqlens.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        forward_op: Callable[[], Tensor],
        linear_map: Any,
        adjoint: Any,
        k: Any,
        m: Any,
        merge: str,
        *decision: Tensor,
    ) -> Any:
        _keep_linear_map(ctx, linear_map, adjoint, k, m, merge, decision)
        return forward_op()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        nothing = (None,) * (len(ctx.needs_input_grad) - 1)
        return _apply_adjoint(ctx, grad), *nothing

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Any:
        return _apply_linear_map(ctx, tangent)


@cache
def _single_level(function: type[torch.autograd.Function]) -> Any:
    """The class that torch would make of a Function for each level that it takes it through."""
    methods = {name: function.__dict__[name] for name in ("forward", "backward", "jvp")}
    return type(f"{function.__name__}SingleLevel", (torch_private.SingleLevelFunction,), methods)


def _apply(function: type[torch.autograd.Function], x: Tensor, forward_op: Callable[[], Any], *args: Any) -> Any:
    """`function.apply`, under torch.func's transforms too.

    torch takes a Function that a user calls through all levels of nested transforms. An operator's Autograd kernel is
    called once for each level, with that level's tensors, so that here a Function is for one level only: its forward
    goes on to the next, which must see gradients enabled as they are here, though torch disables them for a Function.
    """
    if not torch_private.are_transforms_active():
        return function.apply(x, forward_op, *args)
    reverse = torch.is_grad_enabled()

    def next_level() -> Any:
        with torch.set_grad_enabled(reverse), torch_private.set_forward_mode_enabled(True):
            return forward_op()

    with torch_private.enable_single_level_function():
        return _single_level(function).apply(x, next_level, *args)


def _has_tangent(x: Tensor) -> bool:
    # To ask the tensor takes as long as a small operator, so it is asked only where it may have one.
    possible = torch_private.in_forward_mode() or torch_private.are_transforms_active() or torch_private.is_traced()
    return possible and forward_ad.unpack_dual(x, level=0).tangent is not None


def _register(name: str, make_differentiable: Callable[..., Any] | None) -> None:
    op = getattr(torch.ops.visionzip, name).default
    after_autograd = torch_private.after_autograd_keyset

    def autograd(keyset: torch_private.DispatchKeySet, *args: Any, **kwargs: Any) -> Any:
        has_tangent = make_differentiable is not None and _has_tangent(args[0])
        # Every call of inference passes here: where nothing is recorded, nothing has to be kept from being recorded.
        if not torch.is_grad_enabled() and not has_tangent:
            return op.redispatch(keyset & after_autograd, *args, **kwargs)

        def forward_op() -> Any:
            with torch_private.below_autograd():
                return op.redispatch(keyset & after_autograd, *args, **kwargs)

        # None, which torch lets through, is refused by the checks.
        if make_differentiable is None or args[0] is None or not (args[0].requires_grad or has_tangent):
            return forward_op()
        return make_differentiable(forward_op, args, kwargs.get("merge", "residual"))

    _LIBRARY.impl(name, autograd, "Autograd", with_keyset=True)


def _zipped(forward_op: Callable[[], Any], args: tuple, merge: str) -> Any:
    hidden, *_, k, m = args
    ops = torch.ops.visionzip
    return _apply(_Zip, hidden, forward_op, ops.merge, ops.merge_backward, k, m, merge)


def _zipped_packed(forward_op: Callable[[], Any], args: tuple, merge: str) -> Any:
    hidden, _, cu_seqlens, k, m = args
    ops = torch.ops.visionzip
    return _apply(_Zip, hidden, forward_op, ops.merge_packed, ops.merge_packed_backward, k, m, merge, cu_seqlens)


def _linear(name: str, adjoint_name: str) -> Callable[..., Any]:
    def make_differentiable(forward_op: Callable[[], Any], args: tuple, merge: str) -> Any:
        x, *decision, k, m = args
        linear_map, adjoint = getattr(torch.ops.visionzip, name), getattr(torch.ops.visionzip, adjoint_name)
        return _apply(_Linear, x, forward_op, linear_map, adjoint, k, m, merge, *decision)

    return make_differentiable


_register("zip", _zipped)
_register("zip_qk", _zipped)
_register("zip_packed", _zipped_packed)
_register("select", None)
_register("select_qk", None)
_register("select_packed", None)
for _pair in (("merge", "merge_backward"), ("merge_packed", "merge_packed_backward")):
    for _names in (_pair, _pair[::-1]):
        _register(_names[0], _linear(*_names))
