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
    """Runs `forward_op() -> (tokens, indices, assignment, ...)`; hidden's gradient comes through the assignment.

    `cu_seqlens`: one, with packed sequences.
    """

    @staticmethod
    def forward(
        ctx, hidden: Tensor, forward_op: Callable[[], tuple], adjoint: Any, k, m, merge: str, *cu_seqlens: Tensor
    ):
        tokens, indices, assignment, *row_starts = forward_op()
        ctx.save_for_backward(assignment, *cu_seqlens)
        ctx.adjoint, ctx.budget = adjoint, (k, m, merge)
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


class _Carried(torch.autograd.Function):
    """Runs one of an adjoint pair, such as `merge` and `merge_backward`; its gradient is the other one.

    `decision`: the assignment, and with packed sequences cu_seqlens.
    """

    @staticmethod
    def forward(ctx, x: Tensor, forward_op: Callable[[], Tensor], adjoint: Any, k, m, merge: str, *decision: Tensor):
        ctx.save_for_backward(*decision)
        ctx.adjoint, ctx.budget = adjoint, (k, m, merge)
        return forward_op()

    @staticmethod
    def backward(ctx, grad: Tensor):
        k, m, merge = ctx.budget
        nothing = (None,) * (len(ctx.needs_input_grad) - 1)
        return ctx.adjoint(grad, *ctx.saved_tensors, k, m, merge=merge), *nothing


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
    hidden, *_, k, m = args
    return _Zipped.apply(hidden, forward_op, torch.ops.visionzip.merge_backward, k, m, merge)


def _zipped_packed(forward_op: Callable[[], Any], args: tuple, merge: str) -> Any:
    hidden, _, cu_seqlens, k, m = args
    adjoint = torch.ops.visionzip.merge_packed_backward
    return _Zipped.apply(hidden, forward_op, adjoint, k, m, merge, cu_seqlens)


def _carried_with(adjoint_name: str) -> Callable[..., Any]:
    def carried(forward_op: Callable[[], Any], args: tuple, merge: str) -> Any:
        x, *decision, k, m = args
        adjoint = getattr(torch.ops.visionzip, adjoint_name)
        return _Carried.apply(x, forward_op, adjoint, k, m, merge, *decision)

    return carried


_register("zip", _zipped)
_register("zip_qk", _zipped)
_register("zip_packed", _zipped_packed)
_register("select", None)
_register("select_qk", None)
_register("select_packed", None)
_register("merge", _carried_with("merge_backward"))
_register("merge_backward", _carried_with("merge"))
_register("merge_packed", _carried_with("merge_packed_backward"))
_register("merge_packed_backward", _carried_with("merge_packed"))
