"""The CPU kernels of every instruction set that this CPU has: the suite above, in a process of its own for each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.features import RUNNABLE

from visionzip_ext import _C

HERE = Path(__file__).resolve().parent
FILES = (
    "test_decisions.py",
    "test_extreme_values.py",
    "test_ties.py",
    "test_merge.py",
    "test_policy.py",
    "test_properties.py",
)
CHOSEN = "cpu and (every or any or length)"  # of these files: the arithmetic, in every shape
VARIABLE = "VISIONZIP_CPU_ISA"


def python(arguments: list[str], instruction_set: str, seed: int) -> subprocess.CompletedProcess:
    environment = {**os.environ, VARIABLE: instruction_set, "VISIONZIP_TEST_SEED": str(seed), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=HERE.parent, env=environment, capture_output=True, text=True, check=False
    )


def test_the_best_one_is_chosen():
    if VARIABLE not in os.environ:
        assert _C.cpu_isa() == RUNNABLE[-1]


@pytest.mark.parametrize("name", [name for name in RUNNABLE if name != _C.cpu_isa()])
def test_suite(rng, name):
    files = [str(HERE / file) for file in FILES]
    seed = int(torch.randint(2**31, (), generator=rng))
    result = python(["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", CHOSEN, *files], name, seed)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_variable_chooses(name):
    result = python(["-c", "from visionzip_ext import _C; print(_C.cpu_isa())"], name, 0)
    assert result.stdout.strip() == name, result.stderr


def test_an_unknown_name_is_an_error():
    code = "import torch, visionzip_ext; visionzip_ext.select(torch.ones(1, 4, 2), torch.ones(1, 4), 1, 1)"
    result = python(["-c", code], "sse9", 0)
    assert result.returncode != 0
    assert f'{VARIABLE} is "sse9"' in result.stderr
    assert all(name in result.stderr for name in RUNNABLE)
