"""The CUDA kernels, executed on the host: under sanitizers and the race checker, in many schedules, on every path."""

from __future__ import annotations

import itertools
import os
import subprocess

import emulation
import pytest
import torch
from backends import EMULATED
from inputs import BF16, F16, F32, OPS, Shape, dtype_name, random_call

pytestmark = pytest.mark.skipif(bool(emulation.MISSING_REASON), reason=emulation.MISSING_REASON)

SHAPE = Shape(B=2, S=90, C=24, H=3, D=16, k=9, m=6)
TEAMS = [("block", 1), *itertools.product(("cluster", "grid"), (2, 4, 8, 16))]
DECIDED_ON_DEVICE = tuple(op for op in OPS if op not in ("merge", "merge_backward"))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("what", ["merge", "zip"])
@pytest.mark.parametrize("flavour", ["sanitized", "races"])
def test_without_faults(flavour, what, seed):
    """Compared with plain C++, in memory that ends where it should."""
    emulation.build("kernel_driver_sanitized", "kernel_driver_races")
    result = subprocess.run(
        [emulation.RESULTS / f"kernel_driver_{flavour}", what],
        env={**os.environ, emulation.SEED_VARIABLE: str(seed)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    assert result.stdout.endswith(" launches\n"), result.stdout


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=dtype_name)
def test_no_schedule_changes_a_bit(monkeypatch, rng, op, dtype):
    call = random_call(op, rng, SHAPE, (dtype, dtype, dtype))
    expected = call.on(EMULATED)
    for seed in range(1, 6):
        monkeypatch.setenv(emulation.SEED_VARIABLE, str(seed))
        for actual, wanted in zip(call.on(EMULATED), expected, strict=True):
            assert torch.equal(actual, wanted), f"{emulation.SEED_VARIABLE}={seed}"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("op", DECIDED_ON_DEVICE)
def test_no_team_changes_a_bit(monkeypatch, rng, op, seed):
    monkeypatch.setenv(emulation.SEED_VARIABLE, str(seed))
    call = random_call(op, rng, SHAPE)
    expected = call.on(EMULATED)
    for path, blocks in TEAMS:
        monkeypatch.setenv("VISIONZIP_PATH", path)
        monkeypatch.setenv("VISIONZIP_TEAM", str(blocks))
        for actual, wanted in zip(call.on(EMULATED), expected, strict=True):
            assert torch.equal(actual, wanted), f"{path} of {blocks}"
