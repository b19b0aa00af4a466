"""The CUDA kernels on packed images, executed on the host: schedules, launches, and what only they do."""

from __future__ import annotations

import pytest
import torch
from support import emulation, packed
from support.backends import EMULATED
from support.inputs import BF16, F16, F32, dtype_name
from support.packed import PACKED_OPS, Mix, PackedCall, random_packed_call
from test_kernels import TEAMS, force

from visionzip_ext import reference

pytestmark = pytest.mark.skipif(bool(emulation.MISSING_REASON), reason=emulation.MISSING_REASON)

MIX = Mix((90, 11, 0, 40, 20), (9, 3, 0, 0, 10), (6, 2, 0, 0, 10), C=24, H=3, D=16)
GROUPED = Mix((25, 11, 40), (5, 3, 10), (4, 2, 8), C=24, H=3, D=16, group=4)


def assert_same(actual, expected, words: str) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other), words


@pytest.mark.parametrize("mix", [MIX, GROUPED], ids=str)
@pytest.mark.parametrize("op", PACKED_OPS)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=dtype_name)
def test_no_schedule_changes_a_bit(monkeypatch, rng, op, dtype, mix):
    call = random_packed_call(op, rng, mix, (dtype, dtype))
    expected = call.on(EMULATED)
    for seed in range(1, 6):
        monkeypatch.setenv(emulation.SEED_VARIABLE, str(seed))
        assert_same(call.on(EMULATED), expected, f"{emulation.SEED_VARIABLE}={seed}")


@pytest.mark.parametrize("mix", [MIX, GROUPED], ids=str)
@pytest.mark.parametrize("source", ["queries", "scores"])
def test_no_launch_changes_a_bit(monkeypatch, rng, source, mix):
    """Paths, teams, and numbers of multiprocessors."""
    call = random_packed_call("zip_packed", rng, mix, source=source)
    expected = call.on(EMULATED)
    for multiprocessors in (1, 8, 132):
        monkeypatch.setenv(emulation.MULTIPROCESSORS_VARIABLE, str(multiprocessors))
        for path, blocks in TEAMS:
            if blocks > multiprocessors:
                continue
            force(monkeypatch, path, blocks)
            assert_same(call.on(EMULATED), expected, f"{path} of {blocks}, {multiprocessors} multiprocessors")


@pytest.mark.parametrize("dtype", [F32, BF16], ids=dtype_name)
@pytest.mark.parametrize("source", packed.SOURCES)
@pytest.mark.parametrize("op", ["select_packed", "zip_packed"])
@pytest.mark.parametrize("mix", [MIX, GROUPED], ids=str)
def test_the_reference_is_not_asked(monkeypatch, rng, op, source, mix, dtype):
    """What has a kernel is decided by it: also where hidden has another dtype."""
    monkeypatch.setattr(reference, "keep", None)
    call = random_packed_call(op, rng, mix, (F16, dtype), source=source)
    packed.check(call, call.on(EMULATED))


def test_many_tokens_without_max_seqlen(rng):
    """No block has room for an image of all of them, as there might be."""
    mix = Mix((900,) * 80, (20,) * 80, (4,) * 80, C=8, H=1, D=4)
    call = random_packed_call("zip_packed", rng, mix, source="scores", bounded=False)
    packed.check(call, call.on(EMULATED))


def test_tokens_of_no_image(rng):
    call = random_packed_call("select_packed", rng, Mix((20,), (5,), (3,)))
    call = PackedCall(call.op, {**call.tensors, "cu_seqlens": torch.zeros(1, dtype=torch.int32)}, [], [], call.options)
    with pytest.raises(RuntimeError, match=r"cu_seqlens has shape \(1\); expected \(n \+ 1\), n > 0, for T = 20"):
        call.on(EMULATED)


def test_an_image_too_large_for_the_fused_kernel(rng):
    call = random_packed_call("zip_packed", rng, Mix((70_000, 30), (20, 5), (4, 2), C=8, H=1, D=4), source="scores")
    packed.check(call, call.on(EMULATED))


@pytest.mark.parametrize(
    ("cu_seqlens", "words"),
    [
        ([0, 30, 20, 60], "cu_seqlens rises from 0 to T"),
        ([5, 20, 30, 60], "cu_seqlens rises from 0 to T"),
        ([0, 20, 30, 50], "cu_seqlens rises from 0 to T"),
        ([0, 20, 30, 70], "cu_seqlens rises from 0 to T"),
        ([0, -20, 30, 60], "cu_seqlens rises from 0 to T"),
        ([0, 2, 30, 60], "every image has room for its k \\+ m"),
    ],
)
@pytest.mark.parametrize("op", PACKED_OPS)
def test_wrong_boundaries_stop_the_kernel(rng, op, cu_seqlens, words):
    """As an index out of range stops torch's own: without an access that it should not make."""
    call = random_packed_call(op, rng, Mix((20, 10, 30), (5, 4, 6), (3, 2, 4)), bounded=False)
    call = call.with_tensors(cu_seqlens=torch.tensor(cu_seqlens, dtype=torch.int32))
    with pytest.raises(RuntimeError, match=words):
        call.on(EMULATED)


@pytest.mark.parametrize("op", ["select_packed", "zip_packed"])
def test_an_image_longer_than_max_seqlen_stops_the_kernel(rng, op):
    call = random_packed_call(op, rng, Mix((20, 10, 30), (5, 4, 6), (3, 2, 4)))
    call.options["max_seqlen"] = 29
    with pytest.raises(RuntimeError, match="no image has more than max_seqlen tokens"):
        call.on(EMULATED)
