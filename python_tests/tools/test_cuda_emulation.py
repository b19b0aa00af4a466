"""The emulation that executes CUDA kernels on the host: what it computes, and that each of its detectors fires.

A detector is shown a kernel with a planted fault, and the same kernel without it, on which all must stay silent.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass

import pytest
from support import emulation

pytestmark = pytest.mark.skipif(bool(emulation.MISSING_REASON), reason=emulation.MISSING_REASON)

FLAVOURS = ("plain", "sanitized", "races")
SEEDS = (0, 1, 2, 3)
CHECKS = ("warps", "grid", "clusters", "cooperation", "copies", "limits", "matrices")
FAULTS_SOURCE = emulation.PROJECT / "tests" / "faults.cu"

WRONG = "wrong result"
"""No diagnosis: the fault shows in the result, because the schedule or the memory's content brings it out."""


@dataclass(frozen=True)
class Fault:
    """A planted fault, and what the flavours that detect it say."""

    name: str
    plain: str | None = None
    sanitized: str | None = None
    races: str | None = None

    def __str__(self) -> str:
        return self.name


def _always(name: str, words: str) -> Fault:
    return Fault(name, words, words, words)


def _race(name: str) -> Fault:
    return Fault(name, races="race: ")


FAULTS = (
    Fault("missing_barrier", WRONG, WRONG, "race: "),
    _race("missing_syncwarp"),
    _always("divergent_barrier", "divergent barrier: other threads of the block wait at "),
    _always("left_before_barrier", "a thread leaves the kernel while others of its block wait at the barrier"),
    _always("barrier_in_one_warp", "a thread leaves the kernel while others of its block wait at the barrier"),
    _always("unset_shared", WRONG),
    _always("lane_not_in_mask", "the calling lane is not in its mask 0x7fffffff"),
    _always("different_masks", "deadlock: no thread can go on"),
    _always("shuffle_from_absent_lane", ", which does not take part"),
    _always("divergent_collective", "divergent warp collective: other lanes of its mask wait at "),
    _always("left_before_collective", "a lane leaves the kernel while others of mask 0xffffffff wait for it"),
    _always("misaligned_matrix", "misaligned address: not a multiple of 16"),
    _always("matrix_not_shared", "ldmatrix: the row is not in this block's shared memory"),
    _race("matrix_read_too_early"),
    _always("product_without_all_lanes", "a lane leaves the kernel while others of mask 0xffffffff wait for it"),
    Fault("dynamic_shared_too_small", sanitized="AddressSanitizer: heap-buffer-overflow"),
    Fault("shared_array_too_small", sanitized="index 64 out of bounds"),
    Fault("global_too_small", sanitized="AddressSanitizer: heap-buffer-overflow"),
    Fault("division_by_zero", "integer division by zero", "division by zero", "integer division by zero"),
    Fault("wild_pointer", "access to an invalid address", "DEADLYSIGNAL", "access to an invalid address"),
    Fault("misaligned_vector", sanitized="misaligned address", races="misaligned access of "),
    _always("misaligned_copy", "misaligned address: not a multiple of 16"),
    Fault("missing_copy_wait", WRONG, WRONG, "cp.async copy that was not waited for"),
    _race("copy_into_buffer_in_use"),
    Fault("cluster_read_too_early", WRONG, WRONG, "race: "),
    Fault("cluster_write_too_late", WRONG, WRONG, "race: "),
    _race("cluster_relaxed"),
    _always("cluster_not_started", "need not have started: a cluster barrier is missing"),
    _always("cluster_peer_exited", "block 1 of the cluster has exited"),
    Fault("cluster_read_after_exit", sanitized="use-after-poison", races="block of the cluster that has exited"),
    _always("cluster_arrival_without_wait", "a thread leaves the kernel after an arrival without a wait"),
    _always("cluster_wait_without_arrival", "cluster barrier: a wait without an arrival"),
    _always("cluster_second_arrival", "cluster barrier: a second arrival without a wait"),
    _always("cluster_barrier_left_out", "others of its cluster arrived at the barrier"),
    _always("cluster_barriers_crossed", "deadlock: no thread can go on"),
    _always("peer_of_global", "only shared memory has a counterpart in another block"),
    _race("grid_without_fence"),
    _always("grid_waits_for_ever", "livelock: "),
    _race("blocks_race"),
)


def _run(flavour: str, *arguments: str, seed: int | str = 0, leaks: bool = True) -> tuple[int, str]:
    emulation.build_self_tests()
    environment = {**os.environ, emulation.SEED_VARIABLE: str(seed), "ASAN_OPTIONS": f"detect_leaks={int(leaks)}"}
    result = subprocess.run(
        [emulation.RESULTS / f"cuda_emulation_self_test_{flavour}", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return result.returncode, result.stdout


def _blamed_lines(name: str) -> list[int]:
    lines = FAULTS_SOURCE.read_text().splitlines()
    return [i for i, line in enumerate(lines, 1) if line.endswith(f"// blamed: {name}")]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("check", CHECKS)
def test_what_cuda_promises(check, flavour, seed):
    status, output = _run(flavour, check, seed=seed)
    assert status == 0, output


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_silent_without_a_fault(fault, flavour):
    for seed in SEEDS:
        status, output = _run(flavour, fault.name, "fine", seed=seed)
        assert (status, output) == (0, ""), f"seed {seed}\n{output}"


@pytest.mark.parametrize(
    ("fault", "flavour"),
    [(fault, flavour) for fault in FAULTS for flavour in FLAVOURS if getattr(fault, flavour)],
    ids=str,
)
def test_detects(fault, flavour):
    """Whoever made the diagnosis, it names the line."""
    words = getattr(fault, flavour)
    # What an abandoned kernel holds is not given back.
    status, output = _run(flavour, fault.name, "broken", leaks=False)
    assert status != 0
    assert words in output
    lines = _blamed_lines(fault.name)
    assert words == WRONG or not lines or any(re.search(rf"faults\.cu:{line}\b", output) for line in lines), output


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.races == "race: "], ids=str)
def test_finds_a_race_in_every_schedule(fault, seed):
    status, output = _run("races", fault.name, "broken", seed=seed)
    assert status == 1
    assert "race: " in output
    assert "nothing orders them" in output


def test_knows_nothing_of_this_project():
    """So that it can leave: what builds it alone could still reach for files beside it."""
    for path in emulation.PROJECT.rglob("*"):
        if path.is_file():
            assert not re.search(r"visionzip|csrc|python_tests", path.read_text()), path


def test_every_planted_fault_is_tested():
    planted = set(re.findall(r'^ +\{"(\w+)", \{', FAULTS_SOURCE.read_text(), re.MULTILINE))
    assert planted == {fault.name for fault in FAULTS}


@pytest.mark.parametrize(
    ("variables", "wrong"),
    [
        ({emulation.ARCHITECTURE_VARIABLE: "80"}, "cudaErrorNotSupported"),
        ({emulation.MULTIPROCESSORS_VARIABLE: "1"}, None),
    ],
    ids=str,
)
def test_device_of_choice(monkeypatch, variables, wrong):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    status, output = _run("plain", "cluster_relaxed", "fine")
    assert (status == 0) == (wrong is None)
    assert (wrong or "") in output


def test_the_same_seed_gives_the_same_schedule():
    """A block set is executed deterministically, so that a diagnosis can be repeated."""
    first, second = (_run("races", "cluster_write_too_late", "broken", seed=7) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("ARCH", "60", "from 75 to 120"),
        ("ARCH", "sm_90", "from 75 to 120"),
        ("SMS", "0", "from 1 to "),
        ("WORKERS", "0", "from 1 to "),
        ("SEED", "-1", "from 0 to "),
    ],
)
def test_a_variable_out_of_range(monkeypatch, name, value, expected):
    monkeypatch.setenv(f"CUDA_EMULATION_{name}", value)
    status, output = _run("plain", "missing_barrier", "fine", seed=value if name == "SEED" else 0)
    assert status == 3
    assert f"CUDA_EMULATION_{name} is '{value}'; expected a whole number {expected}" in output
