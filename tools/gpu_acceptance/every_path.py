"""`python -m tools.gpu_acceptance.every_path`: every operator on small problems, on every path of the CUDA kernels.

Short, because compute-sanitizer slows kernels down. The results must be right, and the same bits on every path.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import visionzip_ext  # noqa: F401  (registers the operators)
from benchmarks.cases import Case, Inputs
from benchmarks.report import LEAST_RIGHT
from benchmarks.runner import float64_tokens, rows_right

PLAN_VARIABLE = "VISIONZIP_PLAN"
PATHS = ("cluster", "grid", "block", "global")
LEAST_FOR_CLUSTERS = (9, 0)

SMALL = {"B": 3, "S": 41, "C": 24, "H": 3, "D": 16, "k": 7, "m": 5}
ODD = {"B": 2, "S": 77, "C": 33, "H": 2, "D": 9, "k": 10, "m": 4}  # no row is a multiple of 16 bytes
LARGER = {"B": 2, "S": 300, "C": 264, "H": 2, "D": 64, "k": 30, "m": 8}
PACKED = {**SMALL, "k": 12, "m": 6, "has_cls": False, "lengths": (41, 9, 20), "group": 2}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def cases() -> list[Case]:
    """The problems."""
    return [
        *(Case("small", op, **SMALL, dtype=dtype) for op in ("zip", "zip_qk", "merge") for dtype in DTYPES),
        *(Case("odd", op, **ODD, dtype=torch.bfloat16) for op in ("zip", "zip_qk", "merge")),
        *(Case("larger", op, **LARGER, dtype=torch.bfloat16) for op in ("zip", "zip_qk", "merge")),
        Case("small-mean", "zip", **SMALL, dtype=torch.float32, has_cls=False, merge="mean"),
        *(Case("all-queries", "zip_qk", **SMALL, dtype=dtype, has_cls=False) for dtype in DTYPES),
        *(Case("distinct", op, **SMALL, dtype=torch.float16, policy="distinct") for op in ("zip", "zip_qk")),
        Case("larger-distinct", "zip", **LARGER, dtype=torch.bfloat16, policy="distinct"),
        *(Case("packed", "zip_packed", **PACKED, dtype=dtype) for dtype in DTYPES),
    ]


def compute(ops: Any, case: Case, inputs: Inputs) -> tuple[Tensor, ...]:
    """The case's operator, tokens first; then the operator that decides alone, or the gradient's."""
    sizes = (case.k, case.m)
    if case.op == "zip_packed":
        return _compute_packed(ops, case, inputs)
    if case.op == "merge":
        tokens = ops.merge(inputs["hidden"], inputs["assignment"], *sizes, merge=case.merge)
        return tokens, ops.merge_backward(tokens, inputs["assignment"], *sizes, merge=case.merge)
    options: dict[str, Any] = {"has_cls": case.has_cls, "policy": case.policy}
    tensors = [x for name, x in inputs.items() if name != "hidden"]
    if case.op == "zip_qk":
        options["scale"] = case.scale
    decide, whole = (ops.select_qk, ops.zip_qk) if case.op == "zip_qk" else (ops.select, ops.zip)
    return (
        *whole(inputs["hidden"], *tensors, *sizes, merge=case.merge, **options),
        *decide(*tensors, *sizes, **options),
    )


def _compute_packed(ops: Any, case: Case, inputs: Inputs) -> tuple[Tensor, ...]:
    hidden, keys, starts = (inputs[name] for name in ("hidden", "keys", "cu_seqlens"))
    options = {"queries": inputs["queries"], "scale": case.scale, "group": case.group, "max_seqlen": case.S}
    tokens, *decision = ops.zip_packed(hidden, keys, starts, *case.budgets, merge=case.merge, **options)
    applied = (decision[1], starts, *case.budgets)
    return (
        tokens.unsqueeze(0),
        *decision,
        *ops.select_packed(keys, starts, *case.budgets, **options),
        ops.merge_packed(hidden, *applied, merge=case.merge),
        ops.merge_packed_backward(tokens, *applied, merge=case.merge),
    )


@contextmanager
def forced(path: str) -> Iterator[None]:
    """The path that kernels take meanwhile."""
    before = os.environ.get(PLAN_VARIABLE)
    os.environ[PLAN_VARIABLE] = f"path={path}"
    try:
        yield
    finally:
        if before is None:
            del os.environ[PLAN_VARIABLE]
        else:
            os.environ[PLAN_VARIABLE] = before


def complaints(ops: Any, case: Case, device: torch.device, paths: tuple[str, ...]) -> list[str]:
    """What is wrong with a case."""
    inputs = case.inputs(device, 0)
    results = {}
    for path in paths:
        with forced(path):
            results[path] = compute(ops, case, inputs)
    first = results[paths[0]]
    found = [
        f"{case.name}: {path} and {paths[0]} differ"
        for path, result in results.items()
        if not all(torch.equal(one, other) for one, other in zip(first, result, strict=True))
    ]
    right = rows_right(first[0], float64_tokens(case, inputs))
    if not right >= LEAST_RIGHT:
        found.append(f"{case.name}: {right:.0%} of the rows are right")
    return found


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 1 where something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu_acceptance.every_path", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--emulated", type=Path, metavar="LIBRARY", help="the emulated kernels, on the CPU, instead")
    options = parser.parse_args(arguments)
    if options.emulated:
        torch.ops.load_library(options.emulated)
        ops, device, paths = torch.ops.visionzip_emulated, torch.device("cpu"), PATHS
    else:
        ops, device = torch.ops.visionzip, torch.device("cuda")
        paths = PATHS if torch.cuda.get_device_capability() >= LEAST_FOR_CLUSTERS else PATHS[1:]
    found = [complaint for case in cases() for complaint in complaints(ops, case, device, paths)]
    for complaint in found:
        print(complaint)
    print(f"{len(cases())} cases on {', '.join(paths)}: {len(found)} wrong")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
