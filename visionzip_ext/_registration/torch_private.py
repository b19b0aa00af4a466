"""What this package uses of torch that torch does not document: everything of that kind, and nothing else.

Each name says what it is needed for, and which public API falls short. All of them exist in torch 2.10, the oldest that
is supported, and in 2.13; `make test-abi` tries the oldest torch and the newest. A torch that lacks one is told so when
the package is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch.autograd import forward_ad
from torch.utils import _pytree


def _private(path: str) -> Any:
    try:
        return attrgetter(path)(torch)
    except AttributeError:
        raise ImportError(
            f"visionzip_ext uses torch.{path}, a private name that torch {torch.__version__} lacks. Use a torch that "
            "has it (2.13 does), or a newer visionzip_ext."
        ) from None


# --- dispatch: an operator's own kernel at the Autograd key -----------------------------------------------------------
# The public way, torch.library.register_autograd, takes no keyword-only tensor (`lse`) and has no forward mode.

DispatchKeySet: TypeAlias = Any
"""torch._C.DispatchKeySet: what a kernel registered `with_keyset` (which is public) is handed first."""

after_autograd_keyset = _private("_C._after_autograd_keyset")
"""The keys below Autograd, where `OpOverload.redispatch` (no underscore, but undocumented) goes on."""

below_autograd = _private("_C._AutoDispatchBelowAutograd")
"""A context in which nothing that a kernel calls is recorded, such as the reference's operators where a device has no
kernel; under no_grad the next level of a transform would record nothing either."""


def schema_of(op: Any) -> Any:
    """An operator's schema, with `arguments` and `returns`; in public one can be written, not read."""
    return op._schema


# --- forward mode -----------------------------------------------------------------------------------------------------
# torch.autograd.forward_ad documents how to make and read duals, not how to ask whether there may be any.

set_forward_mode_enabled = _private("autograd.forward_ad._set_fwd_grad_enabled")
"""A context. torch disables forward mode inside a Function, where a tangent's own tangent would be lost."""

_private("autograd.forward_ad._current_level")


def in_forward_mode() -> bool:
    """Whether a level of forward mode has been entered; to ask each tensor takes as long as a small operator."""
    return forward_ad._current_level >= 0


# --- torch.func -------------------------------------------------------------------------------------------------------
# A public autograd.Function is taken through all levels of nested transforms at once. An operator's Autograd kernel
# runs once for each level, so that a Function in it must be for one level only, as torch's own generated ones are.

are_transforms_active: Callable[[], bool] = _private("_C._are_functorch_transforms_active")
"""Whether any transform of torch.func runs: without one, the public Function serves."""

SingleLevelFunction = _private("autograd.function._SingleLevelFunction")
"""The base of a Function for one level."""

enable_single_level_function = _private("_functorch.utils.enable_single_level_autograd_function")
"""A context in which such a Function may be applied."""


# --- torch.compile ----------------------------------------------------------------------------------------------------

_count_modes: Callable[[], int] = _private("_C._len_torch_dispatch_stack")
_TracingContext = _private("_guards.TracingContext")


def is_traced() -> bool:
    """Whether a graph is traced: it enters levels of forward mode behind `in_forward_mode`'s back.

    `torch.compiler.is_compiling()` says so as well in 2.13; before, it is false while AOTAutograd traces. A graph is
    traced under a dispatch mode, and to count those first takes an eighth of the time.
    """
    return _count_modes() > 0 and _TracingContext.try_get() is not None


# --- torch.export -----------------------------------------------------------------------------------------------------


def name_for_export(namedtuple: type, name: str) -> None:
    """Give a named tuple the name by which `torch.export.save` writes it; there is no public function for that.

    Where torch lacks it, everything works but saving a program that returns one.
    """
    if register := getattr(_pytree, "_register_namedtuple", None):
        register(namedtuple, serialized_type_name=name)
