"""References that keep nothing alive: between a model and its processor, and from an adapter back to its model."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any


class WeakLink:
    """A weak reference that copies and pickles do not take along: a copy of one side has no partner yet."""

    def __init__(self, target: Any = None) -> None:
        """To `target`; None: to nothing."""
        self._reference = None if target is None else weakref.ref(target)

    def __call__(self) -> Any:
        """The target, or None if there is none or no more."""
        return None if self._reference is None else self._reference()

    def __reduce__(self) -> tuple[Callable, tuple]:
        """To nothing, in a copy."""
        return WeakLink, ()


class OwnerLink(WeakLink):
    """A weak reference of a part to the object that owns it: in a copy of the owner it is to that copy.

    Owner and part are then no reference cycle, so that a model that is deleted is freed at once and not when Python
    next collects cycles.
    """

    def __reduce__(self) -> tuple[Callable, tuple]:
        """To the owner's copy, which copying and pickling have met before: they came to the link through the owner."""
        return OwnerLink, (self(),)
