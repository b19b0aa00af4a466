"""Bad calls, and every way in to an operator: the words of the error are the same on each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
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


REACHING_THE_OPERATOR = ("None", "coo", "csr", "mkldnn")
"""Those that torch passes on to an operator; of the others it speaks itself."""


def check_no_strided_tensor(
    call: OperatorCall,
    kind: str,
    optional: tuple[str, ...],
    way_in: Callable[[OperatorCall], Any] | None = None,
) -> None:
    """In the place of any tensor it is named, by the public function unless said otherwise.

    Of the tensors in `optional`, None leaves one out.
    """
    make, words = NO_STRIDED_TENSORS[kind]
    for name, x in call.tensors.items():
        if kind == "None" and name in optional:
            continue
        with pytest.raises(RuntimeError) as caught:
            (way_in or function)(call.with_tensors(**{name: make(x)}))
        assert str(caught.value) == f"visionzip::{call.op}: {name} is {words}; expected a strided tensor"


INTEGERS = {
    "numpy": np.int32,
    "numpy-0d": np.array,
    "tensor": torch.tensor,
    "tensor-int16": lambda number: torch.tensor(number, dtype=torch.int16),
}
"""What makes of an int something else that is one."""

NO_INTEGERS = [
    (3.0, "3.0 of type float; expected an integer"),
    (True, "True of type bool; expected an integer"),
    (np.bool_(True), f"{np.bool_(True)!r} of type {np.bool_.__name__}; expected an integer"),
    (np.float32(3), f"{np.float32(3)!r} of type float32; expected an integer"),
    (torch.tensor(3.5), "tensor(3.5000) of type Tensor; expected an integer"),
    (torch.tensor(True), "tensor(True) of type Tensor; expected an integer"),
    (torch.tensor([3]), "tensor([3]) of type Tensor; expected an integer"),
    ("3", "'3' of type str; expected an integer"),
    (None, "None; expected an integer"),
    (2**63, "9223372036854775808 of type int; expected an integer of 64 bits"),
    (-(2**63) - 1, "-9223372036854775809 of type int; expected an integer of 64 bits"),
]
"""What is none, and the words for it."""


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
