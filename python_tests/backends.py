"""The implementations of the operators that the suite runs over; each test's id names the one that it ran on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from visionzip_ext import reference


@dataclass(frozen=True)
class Backend:
    """One implementation of the six operators."""

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

REFERENCE = Backend("reference", reference, _CPU, bitwise=False, dispatched=False)
CPU = Backend("cpu", torch.ops.visionzip, _CPU, bitwise=True, dispatched=True)

BACKENDS = (REFERENCE, CPU)
