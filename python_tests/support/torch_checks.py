"""What torch asks of every operator: derivatives, fake results like real ones, one compiled graph for many sizes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from support.backends import Backend
from support.inputs import OperatorCall
from torch import Tensor, func
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

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
    assert torch.autograd.gradcheck(function, first, check_forward_ad=True, **close)
    assert torch.autograd.gradgradcheck(function, first, check_fwd_over_rev=True, **close)


def _cubed(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A scalar with a second derivative that depends on x."""
    return lambda x: (function(x) ** 3).sum()


def _dual(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    with forward_ad.dual_level():
        return tuple(forward_ad.unpack_dual(function(forward_ad.make_dual(x, x.sin()))))


def _compiled(make: Callable[[Callable], Callable]) -> Callable[[Callable, Tensor], Any]:
    def run(function: Callable[[Tensor], Tensor], x: Tensor) -> Any:
        torch._dynamo.reset()
        return torch.compile(make(function), fullgraph=True, backend="aot_eager")(x)

    return run


TRANSFORMS = {
    "dual": _dual,
    "dual-no-grad": torch.no_grad()(_dual),
    "dual-compiled": _compiled(lambda f: partial(_dual, f)),
    "jvp": lambda f, x: func.jvp(f, (x,), (x.sin(),)),
    "jvp-no-grad": torch.no_grad()(lambda f, x: func.jvp(f, (x,), (x.sin(),))),
    "jvp-compiled": _compiled(lambda f: lambda x: func.jvp(f, (x,), (x.sin(),))),
    "jvp-of-jvp": lambda f, x: func.jvp(lambda y: func.jvp(_cubed(f), (y,), (y.sin(),)), (x,), (x.cos(),)),
    "jacfwd": lambda f, x: func.jacfwd(f)(x),
    "jacrev": lambda f, x: func.jacrev(f)(x),
    "vjp": lambda f, x: func.vjp(f, x)[1](f(x).sin()),
    "grad": lambda f, x: func.grad(_cubed(f))(x),
    "grad-compiled": _compiled(lambda f: func.grad(_cubed(f))),
    "grad-of-grad": lambda f, x: func.grad(lambda y: func.grad(_cubed(f))(y).sin().sum())(x),
    "jacrev-of-jacfwd": lambda f, x: func.jacrev(func.jacfwd(_cubed(f)))(x),
    "hessian": lambda f, x: func.hessian(_cubed(f))(x),
    "vmap-of-grad": lambda f, x: func.vmap(func.grad(_cubed(f)))(torch.stack([x, x.sin(), x.cos()])),
}
"""Of a function at x: derivatives in forward mode, and by torch.func."""


def check_transform(call: OperatorCall, backend: Backend, transform: str) -> None:
    """It gives what it gives for the same linear function written as a matrix."""
    first, function = differentiable(call, backend)
    matrix = torch.autograd.functional.jacobian(function, first.detach())
    x = first.detach()
    expected = TRANSFORMS[transform](lambda x: torch.tensordot(matrix, x, x.ndim), x)
    torch.testing.assert_close(TRANSFORMS[transform](function, x), expected, rtol=1e-4, atol=1e-4)


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


def check_saved_program(function: Callable[..., tuple[Tensor, ...]], call: OperatorCall) -> None:
    """What torch.export saved and loaded returns what `function` does, in the same class."""

    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
            own = call.with_tensors(**dict(zip(call.tensors, tensors, strict=True)))
            return function(*own.args, **own.kwargs)

    tensors = tuple(call.tensors.values())
    file = io.BytesIO()
    torch.export.save(torch.export.export(Module(), tensors), file)
    file.seek(0)
    result = torch.export.load(file).module()(*tensors)
    expected = function(*call.args, **call.kwargs)
    assert type(result) is type(expected)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
