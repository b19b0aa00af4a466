"""What torch asks of every operator: derivatives, fake results like real ones, one compiled graph for many sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from backends import Backend
from inputs import OperatorCall
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

OPCHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_static",
    "test_aot_dispatch_dynamic",
)


def opcheck(call: OperatorCall, backend: Backend, requires_grad: bool) -> None:
    """torch's own checks of a registration."""
    call = call.moved(backend)
    for x in call.tensors.values():
        x.requires_grad_(requires_grad and x.is_floating_point())
    overload = getattr(torch.ops.visionzip, call.op).default
    torch.library.opcheck(overload, call.args, call.kwargs, test_utils=OPCHECKS)


def differentiable(call: OperatorCall, backend: Backend) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A call's first tensor, requiring gradients, and the function of it that the call is."""
    name = next(iter(call.tensors))
    first = call.tensors[name].clone().requires_grad_()
    call = call.moved(backend)  # before anything traces the function: storages are copied behind a tracer's back

    def function(x: Tensor) -> Tensor:
        return call.with_tensors(**{name: x}).on(backend)[0]

    return first, function


def check_derivatives(call: OperatorCall, backend: Backend) -> None:
    """In float32, the widest type that the kernels take: a linear function may be differenced over a wide step."""
    first, function = differentiable(call, backend)
    close = {"eps": 0.5, "atol": 2e-5, "rtol": 1e-4, "nondet_tol": 0.0}
    assert torch.autograd.gradcheck(function, first, **close)
    assert torch.autograd.gradgradcheck(function, first, **close)


def check_fake_results(call: OperatorCall, backend: Backend) -> None:
    """Fake results have the shapes, dtypes, devices and strides of real ones."""
    call = call.moved(backend)
    real = call.through(torch.ops.visionzip)
    with FakeTensorMode() as mode:
        fake = call.with_each(mode.from_tensor).through(torch.ops.visionzip)
    both = [(real, fake)] if isinstance(real, Tensor) else zip(real, fake, strict=True)
    for a, b in both:
        assert (a.shape, a.dtype, a.device, a.stride()) == (b.shape, b.dtype, b.device, b.stride())


def check_one_graph(op: str, backend: Backend, calls: Iterable[OperatorCall]) -> None:
    """Compiled without a graph break for the first call, `op` serves the others without another compilation."""

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def compiled(*args, **kwargs):
        return getattr(torch.ops.visionzip, op)(*args, **kwargs)

    torch._dynamo.reset()
    for i, call in enumerate(calls):
        call = call.moved(backend)
        eager = call.through(torch.ops.visionzip)
        with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
            torch.testing.assert_close(compiled(*call.args, **call.kwargs), eager, rtol=0, atol=0)
