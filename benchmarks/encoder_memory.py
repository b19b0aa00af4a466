"""How much memory an encoder takes for one call.

On a CPU in a process of its own, whose high-water mark the kernel keeps. That counts everything: tensors, what
libraries allocate, fragmentation. The C library is told to give memory back as soon as it is free, so that what an
earlier call left does not hide what this one takes. On a GPU torch's allocator keeps the mark, of all tensors.
"""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from transformers import CLIPVisionModel

from benchmarks.encoder_providers import PROVIDERS, EncoderCase, encoder_cases, quick_encoder_cases
from benchmarks.places import ROOT

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(128 << 10), "MALLOC_TRIM_THRESHOLD_": str(128 << 10)}
PROCESS = Path("/proc/self")


def peak_bytes(case: EncoderCase, provider: str) -> int:
    """By how much a call lets the process grow at most, the encoder's weights and its inputs not counted.

    Raises:
        RuntimeError: the process failed.
    """
    command = [sys.executable, "-m", "benchmarks.encoder_memory", case.name, provider, str(torch.get_num_threads())]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | GIVE_BACK, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{case.name}, {provider}: {done.stderr.strip().splitlines()[-1:]}")
    return int(done.stdout)


@torch.no_grad()
def peak_bytes_on_gpu(case: EncoderCase, provider: str, model: CLIPVisionModel) -> int:
    """By how much a GPU's tensors grow at most during a call of the case's encoder."""
    call = PROVIDERS[provider](case, model)
    call(case.pixels(1))  # libraries take a workspace with their first call
    pixels = case.pixels(case.tiles)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call(pixels)
    return torch.cuda.max_memory_allocated() - before


def _status(field: str) -> int:
    """A size in bytes from the process's status."""
    return int(re.search(rf"^{field}:\s+(\d+) kB", (PROCESS / "status").read_text(), re.MULTILINE).group(1)) << 10


@torch.no_grad()
def _measure(case: EncoderCase, provider: str) -> int:
    call = PROVIDERS[provider](case, case.encoder())
    call(case.pixels(1))  # threads, lazily loaded code
    gc.collect()
    pixels = case.pixels(case.tiles)
    (PROCESS / "clear_refs").write_text("5")  # sets the mark to what there is now
    before = _status("VmRSS")
    call(pixels)
    return _status("VmHWM") - before


if __name__ == "__main__":
    name, provider, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    (case,) = (case for case in encoder_cases() + quick_encoder_cases() if case.name == name)
    print(_measure(case, provider))
