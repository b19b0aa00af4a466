"""The committed table of what nvcc made of each kernel, and which kernels have grown since."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.kernel_report.library import Kernel, Library

TABLE = Path(__file__).with_name("table.json")
MOST_GROWTH = 0.05
GATED = ("registers", "instructions")
"""More of these fails; the other numbers are there to be read."""


def _numbers(kernel: Kernel) -> dict[str, int]:
    code = kernel.code.instructions
    return {
        "registers": kernel.usage.registers,
        "spilled_bytes": kernel.spilled_bytes("STL") + kernel.spilled_bytes("LDL"),
        "static_shared_bytes": kernel.static_shared,
        "code_bytes": code[-1].address + 16 if code else 0,  # an instruction has 16 bytes
        "instructions": len(code),
    }


def summary(library: Library) -> dict[str, Any]:
    """The table of a library: its nvcc, and each kernel's numbers by architecture and name."""
    kernels: dict[str, dict[str, dict[str, int]]] = {}
    for kernel in library.kernels:
        kernels.setdefault(kernel.architecture, {})[kernel.name] = _numbers(kernel)
    return {"nvcc": library.nvcc, "kernels": kernels}


def accept(built: dict[str, Any], table: Path = TABLE) -> None:
    """Write the table; another architecture's kernels stay if the same nvcc compiled them."""
    before = json.loads(table.read_text()) if table.exists() else {}
    kept = before.get("kernels", {}) if before.get("nvcc") == built["nvcc"] else {}
    table.write_text(json.dumps({**built, "kernels": {**kept, **built["kernels"]}}, indent=1, sort_keys=True) + "\n")


def growth(built: dict[str, Any], table: dict[str, Any]) -> Iterator[str]:
    """Each kernel of which a gated number is more than 5 % above the table's; new kernels have nothing to be above."""
    for architecture, kernels in built["kernels"].items():
        accepted = table["kernels"].get(architecture, {})
        for name in sorted(kernels.keys() & accepted.keys()):
            for what in GATED:
                before, now = accepted[name][what], kernels[name][what]
                if now > before * (1 + MOST_GROWTH):
                    yield f"{name}, sm_{architecture}: {what}: {before} -> {now} (+{now / before - 1:.0%})"
