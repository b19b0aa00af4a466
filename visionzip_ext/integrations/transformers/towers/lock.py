"""One forward at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import torch


class Lock:
    """A re-entrant lock that can be copied and pickled with the model it guards: the copy gets a lock of its own."""

    def __init__(self) -> None:
        """Free."""
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[Callable, tuple]:
        """A free one, in a copy."""
        return Lock, ()

    def held(self) -> contextlib.AbstractContextManager:
        """A block that one thread at a time enters."""
        # a lock cannot be part of a compiled graph, which is traced by one thread
        return contextlib.nullcontext() if torch.compiler.is_compiling() else self._lock
