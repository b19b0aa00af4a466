"""Gradients: every operator that returns tokens is linear in its first argument once the decision is made.

The decision itself (indices, assignment) has no gradient. `merge_backward` is the adjoint of `merge` and the other way
round, so that gradients of any order exist.

`torch.library.register_autograd` takes no keyword-only tensor (`lse`), therefore the functions are registered at the
Autograd key directly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("visionzip", "IMPL")


class _Zipped(torch.autograd.Function):
    """Runs `forward_op() -> (tokens, indices, assignment)`; hidden's gradient comes through the assignment."""

    @staticmethod
    def forward(ctx, hidden: Tensor, forward_op: Callable[[], tuple[Tensor, Tensor, Tensor]], k, m, merge: str):
        tokens, indices, assignment = forward_op()
        ctx.save_for_backward(assignment)
        ctx.decision = (k, m, merge)
        ctx.mark_non_differentiable(indices, assignment)
        ctx.set_materialize_grads(False)
        return tokens, indices, assignment

    @staticmethod
    def backward(ctx, grad: Tensor | None, *_: Any):
        if grad is None:
            return None, None, None, None, None
        (assignment,) = ctx.saved_tensors
        k, m, merge = ctx.decision
        return torch.ops.visionzip.merge_backward(grad, assignment, k, m, merge=merge), None, None, None, None


class _Carried(torch.autograd.Function):
    """Runs one of the adjoint pair `merge`, `merge_backward`; its gradient is the other one."""

    @staticmethod
    def forward(ctx, x: Tensor, assignment: Tensor, forward_op: Callable[[], Tensor], adjoint: Any, k, m, merge: str):
        ctx.save_for_backward(assignment)
        ctx.adjoint, ctx.decision = adjoint, (k, m, merge)
        return forward_op()

    @staticmethod
    def backward(ctx, grad: Tensor):
        (assignment,) = ctx.saved_tensors
        k, m, merge = ctx.decision
        return ctx.adjoint(grad, assignment, k, m, merge=merge), *(None,) * 6


def _register(name: str, make_differentiable: Callable[..., Any] | None) -> None:
    op = getattr(torch.ops.visionzip, name).default
    after_autograd = torch._C._after_autograd_keyset

    def autograd(keyset: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> Any:
        # Every call of inference passes here: where nothing is recorded, nothing has to be kept from being recorded.
        if not torch.is_grad_enabled():
            return op.redispatch(keyset & after_autograd, *args, **kwargs)

        def forward_op() -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return op.redispatch(keyset & after_autograd, *args, **kwargs)

        if make_differentiable is None or not args[0].requires_grad:
            return forward_op()
        return make_differentiable(forward_op, args, kwargs.get("merge", "residual"))

    _LIBRARY.impl(name, autograd, "Autograd", with_keyset=True)


def _zipped(forward_op: Callable[[], Any], args: tuple, merge: str) -> Any:
    return _Zipped.apply(args[0], forward_op, args[-2], args[-1], merge)


def _carried_with(adjoint_name: str) -> Callable[..., Any]:
    def carried(forward_op: Callable[[], Any], args: tuple, merge: str) -> Any:
        x, assignment, k, m = args
        adjoint = getattr(torch.ops.visionzip, adjoint_name)
        return _Carried.apply(x, assignment, forward_op, adjoint, k, m, merge)

    return carried


_register("zip", _zipped)
_register("zip_qk", _zipped)
_register("select", None)
_register("select_qk", None)
_register("merge", _carried_with("merge_backward"))
_register("merge_backward", _carried_with("merge"))
