"""Bad calls, and every way in to an operator: the words of the error are the same on each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support.inputs import OperatorCall
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import visionzip_ext
from visionzip_ext._registration import fallback as _fallback

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


NO_STRIDED_TENSORS = {
    "None": (lambda x: None, "None"),
    "list": (lambda x: x.tolist(), "of type list"),
    "numpy": (lambda x: x.numpy(), "of type ndarray"),
    "coo": (lambda x: x.to_sparse(), "a tensor of layout sparse_coo"),
    "csr": (lambda x: x.reshape(len(x), -1).to_sparse_csr(), "a tensor of layout sparse_csr"),
    "mkldnn": (lambda x: x.float().to_mkldnn(), "a tensor of layout mkldnn"),
    "nested": (lambda x: torch.nested.nested_tensor([x, x]), "a nested tensor"),
    "jagged": (lambda x: torch.nested.nested_tensor([x, x], layout=torch.jagged), "a nested tensor"),
}
"""What may come in the place of a strided tensor: how it is made of one, and the words for it."""


def check_no_strided_tensor(call: OperatorCall, kind: str, optional: tuple[str, ...]) -> None:
    """In the place of any tensor it is named by the public function; of these, None leaves one out."""
    make, words = NO_STRIDED_TENSORS[kind]
    for name, x in call.tensors.items():
        if kind == "None" and name in optional:
            continue
        with pytest.raises(RuntimeError) as caught:
            function(call.with_tensors(**{name: make(x)}))
        assert str(caught.value) == f"visionzip::{call.op}: {name} is {words}; expected a strided tensor"


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
    return _fallback.KERNELS[call.op](*call.args, **call.kwargs)


def meta_tensors(call: OperatorCall) -> Any:
    """Tensors without memory."""
    return torch_ops(call.with_each(lambda x: x.to("meta")))


def fake_tensors(call: OperatorCall) -> Any:
    """As torch.compile and torch.export trace with them."""
    with FakeTensorMode() as mode:
        return torch_ops(call.with_each(mode.from_tensor))


def compiled_graph(call: OperatorCall) -> Any:
    """A compiled graph of the operator alone, for any sizes."""
    op = getattr(torch.ops.visionzip, call.op)

    @torch.compile(fullgraph=True, dynamic=True, backend="eager")
    def compiled(args, kwargs):
        return op(*args, **kwargs)

    torch._dynamo.reset()
    return compiled(call.args, call.kwargs)
