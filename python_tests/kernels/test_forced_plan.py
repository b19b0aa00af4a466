"""VISIONZIP_PLAN: what it changes of a plan, what it refuses, and that no bit of a result depends on it."""

from __future__ import annotations

import random

import pytest
import torch
from support import emulation
from support.backends import EMULATED
from support.inputs import BF16, F16, F32, Shape, random_call
from support.packed import Mix, random_packed_call
from test_plan import GPUS, SIGLIP, plan

from visionzip_ext import _C

VARIABLE = "VISIONZIP_PLAN"


@pytest.mark.parametrize("path", ["cluster", "grid", "block"])
@pytest.mark.parametrize("team", [1, 2, 3, 4, 7, 8, 13, 16])
def test_a_path_and_a_team(path, team, monkeypatch):
    team = 1 if path == "block" else team
    monkeypatch.setenv(VARIABLE, f"path={path},team={team}")
    chosen = plan("b200", B=2)
    assert (chosen["path"], chosen["team_blocks"]) == (path, team)


@pytest.mark.parametrize("batch", [1, 7, 160])
@pytest.mark.parametrize(
    ("forced", "key", "value"),
    [
        ("team=7", "team_blocks", 7),
        ("threads=96", "threads", 96),
        ("threads=256", "threads", 256),
        ("staged=0", "staged", False),
        ("path=cluster,team=16,staged=1", "staged", True),
        ("staged=0,tile=3", "tile_vectors", 3),
        ("select=ranks", "rank_counting", True),
        ("select=digits", "rank_counting", False),
    ],
)
def test_a_key_is_followed(monkeypatch, batch, forced, key, value):
    monkeypatch.setenv(VARIABLE, forced)
    assert plan("h200", B=batch)[key] == value


@pytest.mark.parametrize("chunks", [1, 2, 4, 8])
def test_chunks_of_column_sums(monkeypatch, chunks):
    monkeypatch.setenv(VARIABLE, f"sum_chunks={chunks}")
    scoring = plan("h200", "zip_qk", **SIGLIP)["scoring"]
    assert (scoring["block_chunks"], scoring["blocks"]) == (chunks, 16 * 8 // chunks)


def test_a_tile_is_no_wider_than_a_block_has_channels(monkeypatch):
    monkeypatch.setenv(VARIABLE, "team=16,tile=1000")
    assert plan("h200")["tile_vectors"] == 8


def test_a_narrow_tile_is_not_staged_unasked(monkeypatch):
    assert plan("h200")["staged"]
    monkeypatch.setenv(VARIABLE, "tile=2")
    assert not plan("h200")["staged"]


@pytest.mark.parametrize("forced", ["staged=1", "tile=4"])
def test_what_a_call_has_no_step_for_says_nothing(monkeypatch, forced):
    """A decision alone merges nothing."""
    expected = plan("h200", "select")["staged"]
    monkeypatch.setenv(VARIABLE, forced)
    assert plan("h200", "select")["staged"] == expected


def test_it_is_read_anew(monkeypatch):
    free = plan("h200")
    monkeypatch.setenv(VARIABLE, "team=2")
    assert plan("h200") != free
    monkeypatch.setenv(VARIABLE, "")
    assert plan("h200") == free


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("exchange=barrier", 'the key "exchange"; expected path, team, threads, staged, tile, select or sum_chunks'),
        ("team", 'VISIONZIP_PLAN has "team"; expected key=value, with commas between'),
        ("team=2,,tile=1", 'VISIONZIP_PLAN has ""; expected key=value'),
        ("team=2,team=3", "VISIONZIP_PLAN has team twice; expected it once"),
        ("path=warp", 'path="warp"; expected cluster, grid, block or global'),
        ("team=none", 'team="none"; expected 1 or more'),
        ("team=0", 'team="0"; expected 1 or more'),
        ("team=2x", 'team="2x"; expected 1 or more'),
        ("team=99999999999", 'team="99999999999"; expected 1 or more'),
        ("threads=100", 'threads="100"; expected a multiple of 32 up to 512'),
        ("threads=1024", 'threads="1024"; expected a multiple of 32 up to 512'),
        ("staged=yes", 'staged="yes"; expected 0 or 1'),
        ("tile=0", 'tile="0"; expected 1 or more'),
        ("select=sort", 'select="sort"; expected digits or ranks'),
        ("sum_chunks=3", 'sum_chunks="3"; expected 1, 2, 4 or 8'),
    ],
)
def test_what_is_no_plan_is_refused(monkeypatch, value, message):
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(ValueError, match=message):
        plan("h200")


@pytest.mark.parametrize(
    ("gpu", "forced", "why"),
    [
        ("a100", "path=cluster", "path is cluster; expected grid or block, as no clusters run there"),
        ("h200", "path=cluster,team=17", "team is 17; expected 1 to 16 with path=cluster"),
        ("geforce-blackwell", "path=cluster,team=9", "team is 9; expected 1 to 8 with path=cluster"),
        ("h200", "path=block,team=2", "team is 2; expected 1 with path=block"),
        ("h200", "path=grid,team=133", "team is 133; expected 1 to 132 with path=grid"),
        ("h200", "team=133", "team is 133; expected 1 to 16 with path=cluster, 1 to 132 with path=grid, 1 with"),
        ("h200", "path=cluster,team=4,staged=1", "shared memory of 232448 bytes is too small"),
        ("h200", "team=16,staged=1,tile=4", "tile is 4; expected all of a block's vectors, 8 or more, as staged=1"),
        ("h200", "path=block,staged=1,tile=100", "tile is 100; expected all of a block's vectors, 128 or more"),
    ],
)
def test_what_cannot_be_says_why(monkeypatch, gpu, forced, why):
    monkeypatch.setenv(VARIABLE, forced)
    words = f"VISIONZIP_PLAN={forced} cannot be taken for S = 577 on a GPU of compute capability {GPUS[gpu][0]}: {why}"
    with pytest.raises(ValueError, match=words):
        plan(gpu)


def test_each_threshold_says_where_it_comes_from():
    results = emulation.ROOT / "benchmarks" / "results"
    for capability in (75, 80, 86, 89, 90, 100, 120):
        for name, (value, source) in _C.cuda_thresholds(compute_capability=capability).items():
            assert value > 0, name
            assert source == "modelled" or (results / source).is_file(), name


def random_plan(numbers: random.Random) -> str:
    """Any of the combinations that can be, of an image that has room for all."""
    path = numbers.choice(("cluster", "grid", "block"))
    staged = numbers.choice((0, 1))
    keys = {
        "path": path,
        "team": 1 if path == "block" else numbers.randint(1, 16),
        "threads": numbers.choice((32, 64, 96, 256, 480, 512)),
        "staged": staged,
        "tile": 100 if staged else numbers.randint(1, 4),
        "select": numbers.choice(("digits", "ranks")),
        "sum_chunks": numbers.choice((1, 2, 4, 8)),
    }
    kept = numbers.sample(sorted(keys), numbers.randint(3, len(keys)))
    if "team" in kept and path == "block":
        kept.append("path")
    if "staged" in kept or "tile" in kept:
        kept += ["staged", "tile"]
    return ",".join(f"{key}={keys[key]}" for key in keys if key in kept)


def assert_no_plan_changes_a_bit(call, rng, monkeypatch, plans: int) -> None:
    numbers = random.Random(int(torch.randint(1, 2**31, (), generator=rng)))
    expected = call.on(EMULATED)
    for _ in range(plans):
        forced = random_plan(numbers)
        monkeypatch.setenv(VARIABLE, forced)
        for actual, wanted in zip(call.on(EMULATED), expected, strict=True):
            assert torch.equal(actual, wanted), forced


needs_emulation = pytest.mark.skipif(bool(emulation.MISSING_REASON), reason=emulation.MISSING_REASON)


@needs_emulation
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "mean"])
@pytest.mark.parametrize("op", ["zip", "zip_qk", "select_qk"])
def test_no_plan_changes_a_bit_emulated(monkeypatch, rng, op, has_cls, dtype):
    shape = Shape(B=3, S=90, C=64, H=3, D=16, k=9, m=6, has_cls=has_cls)
    assert_no_plan_changes_a_bit(random_call(op, rng, shape, (dtype,) * 3), rng, monkeypatch, plans=12)


@needs_emulation
@pytest.mark.parametrize("source", ["queries", "scores"])
def test_no_plan_changes_a_bit_of_packed_images_emulated(monkeypatch, rng, source):
    mix = Mix((90, 11, 0, 40, 20), (9, 3, 0, 0, 10), (6, 2, 0, 0, 10), C=64, H=3, D=16)
    assert_no_plan_changes_a_bit(random_packed_call("zip_packed", rng, mix, source=source), rng, monkeypatch, plans=12)


@needs_emulation
def test_operators_refuse_what_cannot_be_emulated(monkeypatch, rng):
    call = random_call("zip", rng, Shape(B=1, S=40, C=16, H=2, D=8, k=5, m=4))
    monkeypatch.setenv(VARIABLE, "path=block,team=3")
    with pytest.raises(ValueError, match="team is 3; expected 1 with path=block"):
        call.on(EMULATED)
