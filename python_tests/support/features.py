"""Which of the built instruction sets this CPU has, as the system lists them."""

from __future__ import annotations

import re
from pathlib import Path

from visionzip_ext import _C

_AVX512 = {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq"}
_NEEDS = {
    "baseline": set(),
    "neon": set(),  # every 64-bit ARM has it
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": _AVX512,
    "avx512bf16": _AVX512 | {"avx512_bf16"},
}


def _features() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return set(found.group(1).split()) if found else set()


RUNNABLE = [name for name in _C.build_info()["instruction_sets"] if _NEEDS[name] <= _features()]
"""The best one last."""
