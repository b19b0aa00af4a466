"""How long one call takes: by the host's clock on a CPU, by CUDA events on a GPU; with cold caches on both."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from benchmarks.cases import Case

DEFAULT_CACHE_BYTES = 32 << 20  # where the system does not tell
MOST_INPUT_SETS = 64
LEAST_FLUSH_BYTES = 2 << 30
"""Reading it also keeps a fast GPU busy for about 0.5 ms, in which the host launches what is timed."""
MOST_FLUSHED = 1 / 4
"""Of the GPU's memory: the rest is for what is timed."""


class Timer(Protocol):
    """Times calls on a device."""

    device: torch.device
    cache_bytes: int
    """The size of the last cache level."""

    def input_sets(self, case: Case) -> int:
        """How many sets of inputs the calls must take in turn to find theirs cold."""

    def seconds(self, call: Callable[[], object]) -> float:
        """Make the call."""

    def between_cases(self) -> None:
        """Give back what the last case's providers held."""


def last_level_cache() -> int:
    """That of the CPU, in bytes."""
    sizes = [DEFAULT_CACHE_BYTES]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        if text.endswith("K"):
            sizes.append(int(text[:-1]) << 10)
    return max(sizes)


class HostTimer:
    """Calls find their inputs cold because these rotate over several sets, together twice as large as the cache."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.cache_bytes = last_level_cache()

    def input_sets(self, case: Case) -> int:
        """Enough to make sure that a call finds none of its own in a cache."""
        return min(MOST_INPUT_SETS, max(2, -(-2 * self.cache_bytes // case.bytes_moved)))

    def seconds(self, call: Callable[[], object]) -> float:
        """From before the call until it returns."""
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def between_cases(self) -> None:
        """Forget compiled functions: torch compiles one function for so many cases and no more."""
        torch.compiler.reset()


class EventTimer:
    """Calls find a cold L2 because a buffer larger than it is read before each.

    Read and not written: what was written would have to leave the cache during the call. As the GPU is still busy with
    that when the host makes the call, launches take time only where the GPU waits for them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gpu = torch.cuda.get_device_properties(device)
        self.cache_bytes = gpu.L2_cache_size
        flushed = min(max(4 * self.cache_bytes, LEAST_FLUSH_BYTES), int(MOST_FLUSHED * gpu.total_memory))
        self._buffer = torch.zeros(flushed // 4, dtype=torch.float32, device=device)

    def input_sets(self, case: Case) -> int:
        """One: it is cold whenever it is used."""
        return 1

    def seconds(self, call: Callable[[], object]) -> float:
        """From the first thing that the GPU does for the call to the last."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._buffer.sum()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def own_seconds(self) -> float:
        """What it shows for a call that does nothing; no result has it taken off."""
        return statistics.median(self.seconds(lambda: None) for _ in range(20))

    def between_cases(self) -> None:
        """Forget compiled functions, recorded graphs and memory."""
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()


def timer_for(device: str) -> HostTimer | EventTimer:
    """The timer of a device: "cpu" or "cuda"."""
    return EventTimer(torch.device("cuda")) if device == "cuda" else HostTimer()
