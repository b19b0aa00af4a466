"""Bad calls, and every way in to an operator: the words of the error are the same on each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from inputs import OperatorCall
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import visionzip_ext
from visionzip_ext import _fallback

FLOATS = "float32, float16 or bfloat16"


@dataclass(frozen=True)
class BadCall(ABC):
    """A good call of `op`, changed, and what the error says after the operator's name."""

    op: str
    change: dict[str, Any]
    """By argument: a shape, a dtype or a device for a tensor; a value for anything else."""
    words: str

    def __str__(self) -> str:
        return f"{self.op}-{self.changes}"

    @property
    def changes(self) -> str:
        """For ids."""
        return "-".join(f"{name}={str(value).removeprefix('torch.')}" for name, value in self.change.items())

    @abstractmethod
    def call(self) -> OperatorCall:
        """The bad call."""

    def raises(self, way_in: Callable[[OperatorCall], Any], *, exactly: bool = True) -> None:
        """The call raises on this way in, and says so in the first line; or somewhere, where torch adds its own."""
        call, message = self.call(), f"visionzip::{self.op}: {self.words}"
        with pytest.raises(RuntimeError) as caught:
            way_in(call)
        said = str(caught.value)
        assert said.splitlines()[0] == message if exactly else message in said


def changed(x: Tensor, value: Any) -> Tensor:
    """A tensor of another shape, dtype or device, or of these values."""
    if isinstance(value, list):
        return x.new_tensor(value)
    if isinstance(value, tuple):
        return x.new_zeros(value)
    if isinstance(value, torch.dtype):
        return torch.zeros(x.shape, dtype=value)
    return x.to(value)


def function(call: OperatorCall) -> Any:
    """The public function."""
    return call.through(visionzip_ext)


def torch_ops(call: OperatorCall) -> Any:
    """What is registered with torch."""
    return call.through(torch.ops.visionzip)


def fallback(call: OperatorCall) -> Any:
    """What serves devices without a kernel."""
    return getattr(_fallback, f"_{call.op}")(*call.args, **call.kwargs)


def meta_tensors(call: OperatorCall) -> Any:
    """Tensors without memory."""
    return torch_ops(call.with_each(lambda x: x.to("meta")))


def fake_tensors(call: OperatorCall) -> Any:
    """As torch.compile and torch.export trace with them."""
    with FakeTensorMode() as mode:
        return torch_ops(call.with_each(mode.from_tensor))


def compiled_graph(dynamic: bool) -> Callable[[OperatorCall], Any]:
    """A compiled graph of the operator alone."""

    def way_in(call: OperatorCall) -> Any:
        op = getattr(torch.ops.visionzip, call.op)

        @torch.compile(fullgraph=True, dynamic=dynamic, backend="eager")
        def compiled(args, kwargs):
            return op(*args, **kwargs)

        torch._dynamo.reset()
        return compiled(call.args, call.kwargs)

    return way_in
