"""The operators' own checks (csrc/checks), asked by kernels in Python, so that all ways in say the same words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from visionzip_ext import _C
from visionzip_ext._registration.torch_private import schema_of


class _UnknownError(Exception):
    """A symbolic size that stands for no number yet."""


def _known(number: Any) -> Any:
    """Of a symbolic number the one that it was traced with: without a guard, as the kernel checks what comes later."""
    if not isinstance(number, torch.SymInt):
        return number
    hint = number.node.hint
    if type(hint) is not int:
        raise _UnknownError
    return hint


def _described(x: object) -> object:
    """An argument without tensors and symbols."""
    if isinstance(x, Tensor):
        layout = str(x.layout).removeprefix("torch.").removeprefix("_")
        dtype = str(x.dtype).removeprefix("torch.")
        return layout, dtype, x.device.type, x.device.index, [_known(size) for size in x.shape]
    return [_known(number) for number in x] if isinstance(x, (list, tuple)) else _known(x)


def check(op: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise what the compiled operator would raise for these arguments; nothing where it is not known yet."""
    schema = schema_of(getattr(torch.ops.visionzip, op).default).arguments
    given = {**dict(zip((argument.name for argument in schema), args, strict=False)), **kwargs}
    try:
        described = {argument.name: _described(given.get(argument.name, argument.default_value)) for argument in schema}
    except _UnknownError:
        return
    _C.check(op, described)
