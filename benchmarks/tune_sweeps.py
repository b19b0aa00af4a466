"""What `python -m benchmarks.tune` sweeps: for each threshold, problems and the plans to try on them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from benchmarks.cases import CLIP, LLAVA, LONG_MEAN, PACKED, SIGLIP, Case, Inputs
from benchmarks.providers import Call, Provider, ours
from visionzip_ext import _C

VARIABLES = {"cpu": "VISIONZIP_CPU_PLAN", "cuda": "VISIONZIP_PLAN"}
DEFAULT = "default"
"""The plan that the planner chooses by itself."""


@dataclass(frozen=True)
class Sweep:
    """One problem under several plans, as the device's variable takes them; the planner's own is always one of them."""

    about: str
    case: Case
    plans: tuple[str, ...]

    @property
    def name(self) -> str:
        """Unique and stable: results are found by it."""
        return f"{self.about}/{self.case.name}"


@contextmanager
def overridden(variable: str, plan: str) -> Iterator[None]:
    """The plan that operators take meanwhile."""
    before = os.environ.get(variable)
    os.environ[variable] = "" if plan == DEFAULT else plan
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def under(variable: str, plan: str) -> Provider:
    """This library's operator by a plan."""

    def prepare(case: Case, inputs: Inputs) -> Call:
        def call() -> torch.Tensor:
            with overridden(variable, plan):
                return ours(case, inputs)

        return call

    return prepare


BF16 = {"dtype": torch.bfloat16}
AT_64 = {"k": 54, "m": 10}

TEAMS = tuple(f"team={team},threads={threads}" for threads in (512, 256) for team in range(2, 17))
STAGING = tuple(f"team={team},staged={staged}" for team in (4, 7, 8, 16) for staged in (0, 1))
SELECTION = tuple(f"team={team},select={how}" for team in (2, 4, 8, 16) for how in ("digits", "ranks"))
GRIDS = ("path=block", *(f"path=grid,team={team}" for team in (2, 4, 8, 16)))
SUM_CHUNKS = tuple(f"sum_chunks={chunks}" for chunks in (1, 2, 4, 8))


def cuda_sweeps() -> list[Sweep]:
    """Those of a GPU."""

    def llava(op: str, B: int) -> Case:
        return Case(op=op, B=B, **AT_64, **BF16, **LLAVA)

    siglip = [Case(op="zip_qk", B=B, **AT_64, **BF16, **SIGLIP) for B in (1, 5, 32)]
    long = Case(op="zip_qk", B=1, k=384, m=64, **BF16, **LONG_MEAN)
    packed = Case(**PACKED, **BF16)
    return [
        *(Sweep("team", llava("zip", B), TEAMS) for B in (1, 5, 8, 16, 20, 32, 64, 160)),
        *(Sweep("team", llava("zip_qk", B), TEAMS) for B in (1, 8, 160)),
        *(Sweep("staging", llava("zip", B), STAGING) for B in (1, 8, 16, 32, 64)),
        *(Sweep("selection", llava("zip", B), SELECTION) for B in (1, 20, 160)),
        *(Sweep("grid", llava("zip", B), GRIDS) for B in (1, 64, 160, 320)),
        *(Sweep("sums", case, SUM_CHUNKS) for case in (*siglip, long, packed)),
        Sweep("team", packed, TEAMS),
    ]


FACTORS = {
    "least_tokens": (8, 16, 32, 64, 128),
    "head_rounds": (1, 4, 8, 16),
    "most_above_mean": (1.02, 1.05, 1.15, 1.3, 1.6),
    "assign_work": (0.03125, 0.0625, 0.125, 0.25, 0.5),
    "column_work": (0.03125, 0.0625, 0.125, 0.25, 0.5),
}
"""Of the CPU's plans: the values to try."""


def cpu_sweeps() -> list[Sweep]:
    """Those of a CPU: each factor by itself, on problems that depend on it."""
    f32 = {"dtype": torch.float32}
    llava = [Case(op="zip", B=1, **AT_64, **dtype, **CLIP) for dtype in (f32, BF16)]
    uneven = [Case(op="zip", B=5, **AT_64, **dtype, **CLIP) for dtype in (f32, BF16)]
    siglip = [Case(op="zip_qk", B=1, **AT_64, **dtype, **SIGLIP) for dtype in (f32, BF16)]
    packed = [Case(**PACKED, **f32)]
    depends = {
        "least_tokens": [*llava, *uneven],
        "head_rounds": siglip,
        "most_above_mean": packed,
        "assign_work": packed,
        "column_work": packed,
    }
    return [
        Sweep(factor, case, tuple(f"{factor}={value}" for value in FACTORS[factor]))
        for factor, cases in depends.items()
        for case in cases
    ]


def quick_sweeps(device: str, cases: list[Case]) -> list[Sweep]:
    """The same on tiny problems, to try the tuner itself."""
    if device == "cuda":  # where merge has no plan
        return [Sweep("quick", case, ("team=2", "select=ranks")) for case in cases if case.op != "merge"]
    return [Sweep("quick", case, ("head_rounds=1", "least_tokens=8")) for case in cases]


def all_sweeps(device: str) -> list[Sweep]:
    """Everything that is swept on a device."""
    return cuda_sweeps() if device == "cuda" else cpu_sweeps()


def plan_arguments(case: Case) -> dict:
    """What `_C.plan_cuda` is told of a case."""
    sizes = {name: getattr(case, name) for name in ("B", "S", "C", "H", "D", "k", "m", "has_cls")}
    if case.lengths:
        sizes |= {"packed_tokens": sum(case.lengths), "group": case.group}
        sizes |= {"k": max(case.budgets.k), "m": max(case.budgets.m)}
    op = "zip_qk" if case.op == "zip_packed" else case.op
    return {"op": op, **sizes, "element_bytes": case.dtype.itemsize}


def planned(case: Case, plan: str) -> dict:
    """What the CUDA planner makes of it on a Hopper; ValueError where that cannot be."""
    with overridden(VARIABLES["cuda"], plan):
        return _C.plan_cuda(**plan_arguments(case))
