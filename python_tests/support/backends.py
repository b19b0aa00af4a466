"""The implementations of the operators that the suite runs over; each test's id names the one that it ran on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import emulation

from visionzip_ext import _library, packed_reference, reference


@dataclass(frozen=True)
class Backend:
    """One implementation of the operators."""

    name: str
    ops: Any
    """Has the operators as attributes, with the argument names of the schemas."""
    device: torch.device
    bitwise: bool
    """Promises the same bits for the same image whatever the batch, the layout and the launch."""
    dispatched: bool
    """Is reached through `torch.ops.visionzip`, so that checks, fake kernels and autograd stand around it."""

    def __str__(self) -> str:
        return self.name


_CPU = torch.device("cpu")

_DEFINITION = {name: getattr(module, name) for module in (reference, packed_reference) for name in module.__all__}

REFERENCE = Backend("reference", SimpleNamespace(**_DEFINITION), _CPU, bitwise=False, dispatched=False)
CPU = Backend("cpu", torch.ops.visionzip, _CPU, bitwise=True, dispatched=True)


class _Emulated:
    """The CUDA kernels, executed on the host; their library is built and loaded when it is first asked for one."""

    @cached_property
    def _library(self) -> Any:
        emulation.build("visionzip_emulated")
        torch.ops.load_library(emulation.RESULTS / "libvisionzip_emulated.so")
        return torch.ops.visionzip_emulated

    def __getattr__(self, name: str) -> Any:
        operator = getattr(self._library, name)
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"visionzip_emulated::{name}", "CPU"):
            pytest.skip(f"{name} has no CUDA kernel")
        return operator


EMULATED = Backend("emulated", _Emulated(), _CPU, bitwise=True, dispatched=False)

CUDA = Backend("cuda", torch.ops.visionzip, torch.device("cuda"), bitwise=True, dispatched=True)

BACKENDS = (
    REFERENCE,
    CPU,
    *([] if emulation.MISSING_REASON else [EMULATED]),
    *([CUDA] if _library.cuda_library_loaded and torch.cuda.is_available() else []),
)
