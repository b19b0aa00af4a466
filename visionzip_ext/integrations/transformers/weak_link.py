"""A reference from a model to its processor, or back, that keeps neither alive."""

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
