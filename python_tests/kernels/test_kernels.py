"""The CUDA kernels, executed on the host: under sanitizers and the race checker, in many schedules, on every path."""

from __future__ import annotations

import itertools
import os
import subprocess
from dataclasses import replace

import pytest
import torch
from support import emulation, oracle
from support.backends import CPU, EMULATED
from support.inputs import BF16, DECIDING, F16, F32, OPS, ZIPPING, Shape, dtype_name, random_call

from visionzip_ext import reference

pytestmark = pytest.mark.skipif(bool(emulation.MISSING_REASON), reason=emulation.MISSING_REASON)

SHAPE = Shape(B=2, S=90, C=24, H=3, D=16, k=9, m=6)
SHAPES = (
    SHAPE,
    replace(SHAPE, has_cls=False),
    replace(SHAPE, policy="distinct"),
    replace(SHAPE, policy="distinct", keep_cls=False),
)
TEAMS = [("global", 0), ("block", 1), *itertools.product(("cluster", "grid"), (2, 3, 4, 7, 8, 13, 16))]


def force(monkeypatch: pytest.MonkeyPatch, path: str, blocks: int) -> None:
    """The launches of the next calls; the global path has no team."""
    monkeypatch.setenv("VISIONZIP_PLAN", f"path={path},team={blocks}" if blocks else f"path={path}")


def _drive(flavour: str, what: str, **environment: str) -> None:
    result = subprocess.run(
        [emulation.RESULTS / f"kernel_driver_{flavour}", what],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    assert result.stdout.endswith(" launches\n"), result.stdout


@pytest.mark.parametrize("what", ["column_sums", "merge", "packed", "zip"])
@pytest.mark.parametrize("flavour", ["sanitized", "races"])
def test_without_faults(rng, flavour, what):
    """Compared with plain C++, in memory that ends where it should; without races in any order of the threads."""
    emulation.build("kernel_driver_sanitized", "kernel_driver_races")
    random_order = int(torch.randint(1, 2**31, (), generator=rng))
    for seed in (0, random_order) if flavour == "races" else (0,):
        _drive(flavour, what, **{emulation.SEED_VARIABLE: str(seed)})


def test_plans_are_pure_and_parameters_complete():
    """Also of sizes that fit no GPU, under the sanitizer of undefined behaviour: no sum of sizes overflows."""
    emulation.build("kernel_driver_sanitized")
    _drive("sanitized", "plan")


@pytest.mark.parametrize("architecture", [75, 80, 120])
@pytest.mark.parametrize("what", ["column_sums", "packed", "zip"])
def test_every_architecture(what, architecture):
    """Before 8.0 there are no products of bfloat16 matrices, before 9.0 no clusters; some have less shared memory."""
    emulation.build("kernel_driver_plain")
    _drive("plain", what, **{emulation.ARCHITECTURE_VARIABLE: str(architecture)})


def test_column_sums_of_a_long_sequence():
    """Longer than a block holds statistics for; without a checker, with which it would take minutes."""
    emulation.build("kernel_driver_plain")
    _drive("plain", "long_column_sums")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=dtype_name)
def test_no_schedule_changes_a_bit(monkeypatch, rng, op, dtype, shape):
    call = random_call(op, rng, shape, (dtype, dtype, dtype))
    expected = call.on(EMULATED)
    for seed in torch.randint(1, 2**31, (3,), generator=rng).tolist():
        monkeypatch.setenv(emulation.SEED_VARIABLE, str(seed))
        for actual, wanted in zip(call.on(EMULATED), expected, strict=True):
            assert torch.equal(actual, wanted), f"{emulation.SEED_VARIABLE}={seed}"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", DECIDING + ZIPPING)
def test_no_team_changes_a_bit(monkeypatch, rng, op, shape, seed):
    monkeypatch.setenv(emulation.SEED_VARIABLE, str(seed))
    call = random_call(op, rng, shape)
    expected = call.on(EMULATED)
    for path, blocks in TEAMS:
        force(monkeypatch, path, blocks)
        for actual, wanted in zip(call.on(EMULATED), expected, strict=True):
            assert torch.equal(actual, wanted), f"{path} of {blocks}"


@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "mean"])
@pytest.mark.parametrize("S", [30, 257, 577])
@pytest.mark.parametrize("values", [1, 3, 1000])
def test_both_ways_of_selection_break_ties_by_index(monkeypatch, rng, values, S, has_cls):
    """Large teams count ranks, small ones digits: of few different scores, which differ in their last bits."""
    scores = (1 + torch.randint(values, (1, S), generator=rng) * 2.0**-23) * (-1) ** values
    shape = Shape(B=1, S=S, C=0, H=1, D=8, k=S // 3, m=4, has_cls=has_cls)
    call = random_call("select", rng, shape, (F32,) * 3).with_tensors(attn=scores)
    order = sorted(range(has_cls, S), key=lambda j: (-scores[0, j].item(), j))
    expected = sorted([*range(has_cls), *order[: shape.k - has_cls]])
    for path, blocks in TEAMS:
        force(monkeypatch, path, blocks)
        assert call.on(EMULATED)[0].tolist() == [expected], f"{path} of {blocks}"


@pytest.mark.parametrize(("has_cls", "keep_cls"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("S", [30, 257, 577])
def test_distinct_ties_are_broken_by_index_on_every_team(monkeypatch, rng, S, has_cls, keep_cls):
    """Few scores and few directions, all of them exact, so that most products are equal; NaN among them."""
    shape = Shape(B=1, S=S, C=0, H=1, D=8, k=S // 3, m=4, has_cls=has_cls, policy="distinct", keep_cls=keep_cls)
    scores = torch.tensor([1.0, 2.0, float("nan"), -1.0])[torch.randint(4, (1, S), generator=rng)]
    keys = torch.cat([torch.eye(8), torch.zeros(1, 8)])[torch.randint(9, (1, S), generator=rng)]
    call = random_call("select", rng, shape, (F32,) * 3, keys="mean").with_tensors(attn=scores, keys=keys)
    expected = call.on(CPU)
    for path, blocks in TEAMS:
        force(monkeypatch, path, blocks)
        for actual, wanted in zip(call.on(EMULATED), expected, strict=True):
            assert torch.equal(actual, wanted), f"{path} of {blocks}"


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=dtype_name)
def test_no_number_of_multiprocessors_changes_a_bit(monkeypatch, rng, dtype):
    """Few of them, and a block sums all of a head's queries; many, and each chunk has a block of its own."""
    call = random_call("select_qk", rng, Shape(B=3, S=200, C=0, H=4, D=24, k=20, m=9, has_cls=False), (dtype,) * 3)
    call = call.with_tensors(keys=call.tensors["keys"].float().mul(1e-4).to(dtype))  # scores that differ by little
    expected = call.on(EMULATED)
    for multiprocessors in (1, 4, 8):
        monkeypatch.setenv(emulation.MULTIPROCESSORS_VARIABLE, str(multiprocessors))
        for actual, wanted in zip(call.on(EMULATED), expected, strict=True):
            assert torch.equal(actual, wanted), f"{multiprocessors} multiprocessors"


@pytest.mark.parametrize("dtype", [F32, BF16], ids=dtype_name)
@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "mean"])
@pytest.mark.parametrize("op", ["select_qk", "zip_qk"])
def test_the_reference_is_not_asked(monkeypatch, rng, op, has_cls, dtype):
    """What has a kernel is decided by it: also where hidden has another dtype."""
    monkeypatch.setattr(reference, "qk_scores", None)
    call = random_call(op, rng, replace(SHAPE, has_cls=has_cls), (F16, dtype, dtype))
    oracle.check(call, call.on(EMULATED))
