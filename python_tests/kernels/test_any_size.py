"""What the fused kernel has no room for: images of any size, and heads of any number of channels."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import emulation, oracle, packed
from support.backends import CPU, EMULATED
from support.inputs import BF16, DTYPES, F16, F32, MERGE_WORDS, Shape, dtype_name, random_call
from support.packed import Mix, random_packed_call

from visionzip_ext import packed_reference, reference

pytestmark = pytest.mark.skipif(bool(emulation.MISSING_REASON), reason=emulation.MISSING_REASON)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _no_reference(monkeypatch):
    """No call goes up into Python."""
    for module in (reference, packed_reference):
        for name in module.__all__:
            monkeypatch.setattr(module, name, None)


def assert_same(actual, expected) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("op", ["zip", "zip_qk"])
@pytest.mark.parametrize("S", [65_535, 100_000])
def test_an_image_beyond_shared_memory(rng, op, S):
    shape = Shape(B=1, S=S, C=4, H=1, D=4, k=S // 1000, m=7)
    call = random_call(op, rng, shape, attn="rows")
    results, expected = call.on(EMULATED), call.on(CPU)
    assert_same(results[1:], expected[1:])
    torch.testing.assert_close(results[0], expected[0])


def test_a_packed_million(rng):
    """Images of 65,535 tokens and more among small ones, as if there were nothing else."""
    lengths = (65_535, 20, 700_000, 0, 300, 100_000, *(577,) * 200, 20_000)
    k = [min(S, 6) for S in lengths]
    m = [min(S - own, 2) for S, own in zip(lengths, k, strict=True)]
    call = random_packed_call("zip_packed", rng, Mix(lengths, tuple(k), tuple(m), C=4, H=1, D=1), source="scores")
    assert call.starts[-1] > 1_000_000
    results, expected = call.on(EMULATED), call.on(CPU)
    assert_same(results[1:], expected[1:])
    torch.testing.assert_close(results[0], expected[0])
    for i in (1, 4, 7):
        alone = packed.image(call, i).on(EMULATED)
        assert_same(packed.of_image(call, i, results), alone)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("lse", [False, True], ids=["softmax", "lse"])
@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "mean"])
@pytest.mark.parametrize("D", [257, 320])
def test_heads_of_more_than_256_channels(rng, has_cls, lse, dtype, D):
    shape = Shape(B=2, S=90, C=8, H=2, D=D, k=9, m=6, has_cls=has_cls)
    call = random_call("zip_qk", rng, shape, (dtype,) * 3, lse=lse)
    oracle.check(call, call.on(EMULATED))


@pytest.mark.parametrize("group", [1, 3])
def test_packed_heads_of_more_than_256_channels(rng, group):
    mix = Mix((90, 11, 0, 200), (9, 3, 0, 20), (6, 2, 0, 9), C=8, H=2, D=260, group=group)
    call = random_packed_call("select_packed", rng, mix, (BF16, BF16))
    packed.check(call, call.on(EMULATED))


LONG = Shape(B=1, S=2100, C=16, H=3, D=20, k=90, m=70)  # long: larger chunks of softmax statistics


OTHERS = (
    replace(LONG, m=0),
    replace(LONG, k=0, has_cls=False),
    replace(LONG, policy="distinct"),
    replace(LONG, policy="distinct", keep_cls=False),
    replace(LONG, keep_cls=False),
)


@pytest.mark.parametrize("merge", MERGE_WORDS)
@pytest.mark.parametrize("attn", ["rows", "scores"])
@pytest.mark.parametrize("shape", [LONG, *OTHERS], ids=str)
def test_the_fused_kernels_bits(monkeypatch, rng, shape, attn, merge):
    if attn == "rows" and not shape.has_cls:
        attn = "scores"
    for op in ("zip", "zip_qk") if shape.has_cls else ("zip",):
        call = random_call(op, rng, shape, (BF16, F16, F32), attn=attn, merge=merge)
        expected = call.on(EMULATED)
        monkeypatch.setenv("VISIONZIP_PLAN", "path=global")
        assert_same(call.on(EMULATED), expected)
        monkeypatch.delenv("VISIONZIP_PLAN")


def test_few_values_of_scores_across_slices(monkeypatch, rng):
    """Ties in every slice, NaN and infinities among them; all of an image equal."""
    shape = Shape(B=4, S=3000, C=0, H=1, D=4, k=700, m=40, has_cls=False)
    call = random_call("select", rng, shape, attn="scores")
    values = torch.tensor([0.0, -0.0, 0.5, -1.0, float("nan"), float("inf"), -float("inf")])
    attn = values[torch.randint(len(values), (shape.B, shape.S), generator=rng)]
    attn[1], attn[2] = 0.25, float("nan")
    keys = torch.randint(-1, 2, call.tensors["keys"].shape, generator=rng).float()  # equal similarities, zero lengths
    call = call.with_tensors(attn=attn, keys=keys)
    monkeypatch.setenv("VISIONZIP_PLAN", "path=global")
    assert_same(call.on(EMULATED), call.on(CPU))


def test_distinct_tokens_of_images_beyond_shared_memory(rng):
    """Of different sizes and budgets, so that some images have taken theirs long before the others."""
    mix = Mix((66_000, 20, 0, 129), (5, 12, 0, 40), (2, 3, 0, 0), C=4, H=1, D=8, policy="distinct")
    call = random_packed_call("zip_packed", rng, mix, source="scores")
    results, expected = call.on(EMULATED), call.on(CPU)
    assert_same(results[1:], expected[1:])
    torch.testing.assert_close(results[0], expected[0])


def test_the_operators_suite_on_this_path():
    some = ("test_ties.py", "test_extreme_values.py", "test_policy.py")
    random = ("test_any_operator", "test_any_packed_operator", "test_any_values", "test_any_batch")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        + ["-k", " and not ".join(("emulated", *random))]
        + [f"python_tests/operators/{name}" for name in some],
        cwd=ROOT,
        env={**os.environ, "VISIONZIP_PLAN": "path=global"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
