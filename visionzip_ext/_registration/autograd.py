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
from torch._functorch.utils import enable_single_level_autograd_function
from torch._guards import TracingContext
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

_LIBRARY = torch.library.Library("visionzip", "IMPL")


def _carry_tangent(ctx, tangent: Tensor) -> Tensor:
    k, m, merge = ctx.budget
    # torch disables forward mode here, although under nested torch.func.jvp a tangent has a tangent, too.
    with forward_ad._set_fwd_grad_enabled(True):
        return ctx.carry(tangent, *ctx.saved_tensors, k, m, merge=merge)


class _Zipped(torch.autograd.Function):
    """Runs `forward_op() -> (tokens, indices, assignment, ...)`; hidden's gradient comes through the assignment.

    `carry` carries a decision out, as `merge` does, and `adjoint` is its adjoint. `cu_seqlens`: one, with packed
    sequences.
    """

    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,
        forward_op: Callable[[], tuple],
        carry: Any,
        adjoint: Any,
        k,
        m,
        merge: str,
        *cu_seqlens: Tensor,
    ):
        tokens, indices, assignment, *row_starts = forward_op()
        ctx.save_for_backward(assignment, *cu_seqlens)
        ctx.save_for_forward(assignment, *cu_seqlens)
        ctx.carry, ctx.adjoint, ctx.budget = carry, adjoint, (k, m, merge)
        ctx.decisions = 2 + len(row_starts)
        ctx.mark_non_differentiable(indices, assignment, *row_starts)
        ctx.set_materialize_grads(False)
        return tokens, indices, assignment, *row_starts

    @staticmethod
    def backward(ctx, grad: Tensor | None, *_: Any):
        nothing = (None,) * (len(ctx.needs_input_grad) - 1)
        if grad is None:
            return None, *nothing
        k, m, merge = ctx.budget
        return ctx.adjoint(grad, *ctx.saved_tensors, k, m, merge=merge), *nothing

    @staticmethod
    def jvp(ctx, tangent: Tensor | None, *_: Any):
        nothing = (None,) * ctx.decisions
        if tangent is None:
            return None, *nothing
        return _carry_tangent(ctx, tangent), *nothing


class _Carried(torch.autograd.Function):
    """Runs `carry`, one of an adjoint pair such as `merge` and `merge_backward`; its gradient is the other one.

    `decision`: the assignment, and with packed sequences cu_seqlens.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        forward_op: Callable[[], Tensor],
        carry: Any,
        adjoint: Any,
        k,
        m,
        merge: str,
        *decision: Tensor,
    ):
        ctx.save_for_backward(*decision)
        ctx.save_for_forward(*decision)
        ctx.carry, ctx.adjoint, ctx.budget = carry, adjoint, (k, m, merge)
        return forward_op()

    @staticmethod
    def backward(ctx, grad: Tensor):
        k, m, merge = ctx.budget
        nothing = (None,) * (len(ctx.needs_input_grad) - 1)
        return ctx.adjoint(grad, *ctx.saved_tensors, k, m, merge=merge), *nothing

    @staticmethod
    def jvp(ctx, tangent: Tensor, *_: Any):
        return _carry_tangent(ctx, tangent)


@cache
def _single_level(function: type[torch.autograd.Function]) -> type[_SingleLevelFunction]:
    """The class that torch would make of a Function for each level that it carries it through."""
    methods = {name: function.__dict__[name] for name in ("forward", "backward", "jvp")}
    return type(f"{function.__name__}SingleLevel", (_SingleLevelFunction,), methods)


def _apply(function: type[torch.autograd.Function], x: Tensor, forward_op: Callable[[], Any], *args: Any) -> Any:
    """`function.apply`, under torch.func's transforms too.

    A Function called by a user has to be carried through all levels of nested transforms. An operator's Autograd kernel
    is called once for each level, with that level's tensors, so that here a Function is for one level only: its forward
    goes on to the next, which must see gradients enabled as they are here, though torch disables them for a Function.
    """
    if not torch._C._are_functorch_transforms_active():
        return function.apply(x, forward_op, *args)
    reverse, forward = torch.is_grad_enabled(), torch._C._is_fwd_grad_enabled()

    def next_level() -> Any:
        with torch.set_grad_enabled(reverse), forward_ad._set_fwd_grad_enabled(forward):
            return forward_op()

    with enable_single_level_autograd_function():
        return _single_level(function).apply(x, next_level, *args)


def _has_tangent(x: Tensor) -> bool:
    # To ask the tensor takes as long as a small operator, so it is asked only where it may have one. A compiled graph
    # enters a level of forward mode without telling `forward_ad`; it is traced under a mode, and modes are few.
    possible = (
        forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or (torch._C._len_torch_dispatch_stack() > 0 and TracingContext.try_get() is not None)
    )
    return possible and torch._VF._unpack_dual(x, level=0)[1] is not None


def _register(name: str, make_differentiable: Callable[..., Any] | None) -> None:
    op = getattr(torch.ops.visionzip, name).default
    after_autograd = torch._C._after_autograd_keyset

    def autograd(keyset: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> Any:
        has_tangent = make_differentiable is not None and _has_tangent(args[0])
        # Every call of inference passes here: where nothing is recorded, nothing has to be kept from being recorded.
        if not torch.is_grad_enabled() and not has_tangent:
            return op.redispatch(keyset & after_autograd, *args, **kwargs)

        def forward_op() -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return op.redispatch(keyset & after_autograd, *args, **kwargs)

        if make_differentiable is None or not (torch._C._any_requires_grad(args[0]) or has_tangent):
            return forward_op()
        return make_differentiable(forward_op, args, kwargs.get("merge", "residual"))

    _LIBRARY.impl(name, autograd, "Autograd", with_keyset=True)


def _zipped(forward_op: Callable[[], Any], args: tuple, merge: str) -> Any:
    hidden, *_, k, m = args
    ops = torch.ops.visionzip
    return _apply(_Zipped, hidden, forward_op, ops.merge, ops.merge_backward, k, m, merge)


def _zipped_packed(forward_op: Callable[[], Any], args: tuple, merge: str) -> Any:
    hidden, _, cu_seqlens, k, m = args
    ops = torch.ops.visionzip
    return _apply(_Zipped, hidden, forward_op, ops.merge_packed, ops.merge_packed_backward, k, m, merge, cu_seqlens)


def _carried(carry_name: str, adjoint_name: str) -> Callable[..., Any]:
    def carried(forward_op: Callable[[], Any], args: tuple, merge: str) -> Any:
        x, *decision, k, m = args
        carry, adjoint = (getattr(torch.ops.visionzip, name) for name in (carry_name, adjoint_name))
        return _apply(_Carried, x, forward_op, carry, adjoint, k, m, merge, *decision)

    return carried


_register("zip", _zipped)
_register("zip_qk", _zipped)
_register("zip_packed", _zipped_packed)
_register("select", None)
_register("select_qk", None)
_register("select_packed", None)
for _pair in (("merge", "merge_backward"), ("merge_packed", "merge_packed_backward")):
    for _names in (_pair, _pair[::-1]):
        _register(_names[0], _carried(*_names))
