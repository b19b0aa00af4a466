"""What the functions must see before torch does: what the dispatcher refuses in its own words, or takes for another.

All that the operators require of tensors and numbers is written in csrc/checks.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.overrides import is_tensor_like

_LEAST, _MOST = -(2**63), 2**63 - 1
_INTEGERS = "an integer, a list of integers, or a tensor (n,) of integers on the CPU"


def _fail(op: str, name: str, x: object, expected: str) -> NoReturn:
    came = "None" if x is None else f"{x!r} of type {type(x).__name__}"
    raise RuntimeError(f"visionzip::{op}: {name} is {came}; expected {expected}")


def check_kinds(op: str, *, has_cls: bool = True, keep_cls: bool = True, **tensors: Tensor) -> None:
    """That tensors are tensors, and has_cls and keep_cls are no numbers."""
    for name, x in tensors.items():
        is_tensor = isinstance(x, Tensor)
        # What torch.fx traces with is none, but may stand for one.
        if not x.is_nested if is_tensor else is_tensor_like(x):
            continue
        came = "a nested tensor" if is_tensor else "None" if x is None else f"of type {type(x).__name__}"
        raise RuntimeError(f"visionzip::{op}: {name} is {came}; expected a strided tensor")
    for name, flag in (("has_cls", has_cls), ("keep_cls", keep_cls)):
        if not isinstance(flag, (bool, torch.SymBool)):
            raise RuntimeError(f"visionzip::{op}: {name} is {flag!r}; expected True or False")


def given(**tensors: Tensor | None) -> dict[str, Tensor]:
    """Of optional tensors those that are there."""
    return {name: x for name, x in tensors.items() if x is not None}


def _as_int(number: Any) -> Any:
    """An int of 64 bits of anything that is an integer: TypeError for what is none, OverflowError for others."""
    if type(number) is int and not torch.compiler.is_dynamo_compiling() and _LEAST <= number <= _MOST:
        return number
    if isinstance(number, bool):
        raise TypeError
    # Without asking a symbolic number for its value, and without a guard on it.
    if isinstance(number, torch.SymInt) or (torch.compiler.is_dynamo_compiling() and isinstance(number, int)):
        return number
    if isinstance(number, Tensor) and (number.ndim or number.is_meta or number.dtype == torch.bool):
        raise TypeError
    if is_tensor_like(number) and not isinstance(number, Tensor):
        return number
    whole = operator.index(number)
    if not _LEAST <= whole <= _MOST:
        raise OverflowError
    return whole


def integer(op: str, name: str, number: object) -> int:
    """`number` as an int of 64 bits: an int, a NumPy integer or an integer tensor without dimensions."""
    try:
        return _as_int(number)
    except TypeError:
        _fail(op, name, number, "an integer")
    except OverflowError:
        _fail(op, name, number, "an integer of 64 bits")


def integers(op: str, name: str, numbers: int | Iterable[int] | Tensor) -> list[int]:
    """A list of one number for all, or of one for each."""
    if isinstance(numbers, Tensor) and numbers.ndim:
        whole = not (numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool)
        if numbers.device.type != "cpu" or numbers.ndim > 1 or not whole:
            dtype, shape = str(numbers.dtype).removeprefix("torch."), tuple(numbers.shape)
            raise RuntimeError(
                f"visionzip::{op}: {name} is a tensor of dtype {dtype} and shape {shape} on {numbers.device}; "
                f"expected {_INTEGERS}"
            )
        return numbers.tolist()
    try:
        one = type(numbers) is int or not isinstance(numbers, Iterable) or getattr(numbers, "ndim", None) == 0
        each: Iterable[Any] = [numbers] if one else numbers  # type: ignore[assignment]
        return [_as_int(number) for number in each]
    except TypeError:
        _fail(op, name, numbers, _INTEGERS)
    except OverflowError:
        _fail(op, name, numbers, "integers of 64 bits")
