"""The performance model: its arithmetic, what it reads of the machine code, and that it calls modelled what is."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # not installed: benchmarks belong to the source tree

from benchmarks.cases import LLAVA, PACKED, SIGLIP, Case, cuda_cases
from benchmarks.places import slug
from tools.kernel_report import baseline
from tools.kernel_report.library import Kernel, Usage
from tools.kernel_report.machine_code import Code, parse
from tools.performance_model import __main__ as program
from tools.performance_model import column_sums, model
from tools.performance_model.counts import Size, Tile, size_of, tiles_of
from tools.performance_model.machines import HOPPER, MACHINES, PROCESSING_CLUSTERS, clusters_of
from tools.performance_model.model import Work

H100, H200 = MACHINES
BF16 = {"dtype": torch.bfloat16}
ONE = Case(op="zip", B=1, k=54, m=10, **BF16, **LLAVA)
SUMS = Case(op="zip_qk", B=1, k=54, m=10, **BF16, **SIGLIP)
PLAN = {"threads": 512, "block_chunks": 1, "one_pass_tokens": 1024, "shared_bytes": 200_000}
TILES = (Tile(1000, 0, 0), Tile(600, 0, 0), Tile(400, 0, 0))
EMPTY = defaultdict(lambda: Kernel("a kernel", "90", Usage(128, 0, 0, 0), Code()))


@pytest.fixture
def work(monkeypatch):
    """A case's, with kernels of known numbers."""
    monkeypatch.setattr(model, "size_of", lambda kernel: Size(9000, 128, 20, 4))
    monkeypatch.setattr(model, "tiles_of", lambda kernel, channels: TILES)
    return lambda case: Work(case, EMPTY)


@pytest.fixture(scope="session")
def hopper(built) -> dict[str, Kernel]:
    kernels = {kernel.name: kernel for kernel in built.kernels if kernel.architecture == program.ARCHITECTURE}
    return kernels or pytest.skip("no machine code for a Hopper")


# --- bytes, launches, exchanges ---------------------------------------------------------------------------------------


def test_one_image_counted_by_hand(work):
    hidden, keys, attention, rows = 577 * 1024 * 2, 16 * 577 * 64 * 2, 16 * 577 * 2, 64 * 1024 * 2
    of_one = work(ONE)
    assert of_one.case.bytes_moved == hidden + keys + attention + rows + 8 * (54 + 577) == 2_517_976
    assert of_one.launches == ["zip_kernel<bfloat16, attn, ClusterTeam>"]
    assert (of_one.plan["team_blocks"], of_one.plan["staged"], of_one.waves) == (16, True, 1)
    assert of_one.exchanges == 3  # scores, ranks, assignments
    # Into 16 multiprocessors, 64 bytes a cycle each, is slower than the memory; one round trip, as hidden is staged.
    clock, modelled = 1.98e9, of_one.on(H100)
    assert modelled.launches == pytest.approx(2.5)
    assert modelled.memory == pytest.approx(1e6 * (2_517_976 / 16 / 64 + 480) / clock)
    assert modelled.exchanges == pytest.approx(1e6 * (3 * (260 + 200 + 260) + 20 * 30) / clock)
    assert modelled.column_sums == 0
    assert modelled.total == pytest.approx(sum(asdict(modelled).values()))


def test_a_batch_is_bound_by_the_memory(work):
    batch = work(replace(ONE, B=160))
    seconds = 160 * 2_517_976 / (0.9 * 3.35e12) + 2 * 480 / 1.98e9
    assert batch.on(H100).memory == pytest.approx(1e6 * seconds)


def test_launches(work):
    assert work(SUMS).launches == ["column_sums_kernel<bfloat16, 72>", "zip_kernel<bfloat16, attn, ClusterTeam>"]
    assert work(replace(SUMS, dtype=torch.float32)).launches[0] == "column_sums_kernel<float, 0>"
    packed = work(Case(**PACKED, **BF16))
    assert [name.partition("_kernel")[0][-5:] for name in packed.launches] == ["place", "_sums", "zip"]
    assert packed.plan["scoring"]["sums_bytes"] == 4 * packed.case.H * 8 * sum(packed.cells)  # of cells, not of tokens
    assert work(replace(ONE, op="merge")).launches == ["merge_kernel<bfloat16, 8>"]
    assert work(SUMS).on(H100).launches == pytest.approx(3.5)


def test_the_plan_is_the_planners_as_the_environment_overrides_it(work, monkeypatch):
    monkeypatch.setenv("VISIONZIP_PLAN", "path=grid,team=8")
    forced = work(ONE)
    assert (forced.plan["path"], forced.plan["team_blocks"]) == ("grid", 8)
    assert forced.launches == ["memset", "zip_kernel<bfloat16, attn, GridTeam>"]
    monkeypatch.setenv("VISIONZIP_PLAN", "path=global")
    assert work(SUMS).launches[-1] == "merge_kernel<bfloat16, 8>"
    monkeypatch.setenv("VISIONZIP_PLAN", "team=1")
    assert work(ONE).exchanges == 0


@pytest.mark.parametrize("path", ["cluster", "grid", "global"])
def test_every_launch_is_a_kernel_of_the_committed_table(work, monkeypatch, path):
    monkeypatch.setenv("VISIONZIP_PLAN", f"path={path}")
    names = {name for case in cuda_cases() for name in work(case).launches} - {"memset"}
    assert names <= json.loads(baseline.TABLE.read_text())["kernels"]["90"].keys()


def test_clusters_lie_within_processing_clusters():
    assert sum(PROCESSING_CLUSTERS) == HOPPER["multiprocessors"].value
    assert (clusters_of(1), clusters_of(8), clusters_of(16), clusters_of(19)) == (132, 15, 7, 0)


# --- times ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [ONE, replace(ONE, op="zip_qk"), SUMS, replace(ONE, op="merge")], ids=lambda c: c.name)
def test_more_images_take_no_less(work, case):
    times = [work(replace(case, B=B)).on(H100).total for B in range(1, 200)]
    assert all(after >= before for before, after in pairwise(times))
    assert times[-1] > 10 * times[0]


def test_no_case_is_faster_than_its_bytes_or_its_launches(work):
    for case in cuda_cases():
        of_h100, of_h200 = (work(case).on(machine) for machine in MACHINES)
        for machine, modelled in ((H100, of_h100), (H200, of_h200)):
            assert modelled.total > 1e6 * case.bytes_moved / machine.bandwidth.value + HOPPER["first_launch"].value
        assert of_h200.total <= of_h100.total
        assert of_h200.memory < of_h100.memory or case.B < 9  # else the multiprocessors' loads are the limit


def test_what_limits_a_tile():
    assert column_sums.cycles_of(Tile(500, 10, 0)) == 500
    assert column_sums.cycles_of(Tile(500, 64, 0)) == 64 * 8  # a quarter of 16 results a cycle, for 32 lanes
    assert column_sums.cycles_of(Tile(1, 1, 32 * 64 * 64)) == pytest.approx(32 * 64 * 64 / (2048 / 4 * 0.62))


@pytest.mark.parametrize(
    ("cells", "heads", "plan", "cycles"),
    [
        ([1024], 1, {}, 4 * 4 * 1000),  # a chunk of four tiles a block; sixteen warps on four schedulers
        ([1024], 1, {"block_chunks": 8}, 8 * 4 * 4 * 1000),
        ([100], 1, {"threads": 64}, 1 * 1000),  # four tiles for eight chunks, two warps
        ([1024], 33, {}, 2 * 16_000),  # twice as many blocks as multiprocessors
        ([1024], 34, {}, 3 * 16_000),
        # One pass has no room: eight tiles a chunk, statistics against 32 strips, columns by two strips a warp.
        ([2048], 1, {}, 32 * 2 * 600 + 8 * 2 * 4 * 400),
        # Two short images beside a long one: all chunks of a head by one block each, at the same time.
        ([1024, 256, 256], 1, {}, 16_000),
    ],
)
def test_column_sums_counted_by_hand(cells, heads, plan, cycles):
    seconds = column_sums.compute_seconds(cells, heads, {**PLAN, **plan}, TILES)
    assert seconds == pytest.approx(cycles / 1.98e9)


def test_small_blocks_share_a_multiprocessor_and_its_time():
    small = {**PLAN, "threads": 256, "shared_bytes": 100_000}
    alone = column_sums.compute_seconds([512], 1, small, TILES)
    assert alone == pytest.approx(2 * 2 * 2 * 1000 / 1.98e9)  # two tiles, two turns, two blocks
    assert column_sums.compute_seconds([512], 33, small, TILES) == alone
    assert column_sums.compute_seconds([512], 34, small, TILES) == pytest.approx(2 * alone)


def test_longer_images_take_longer():
    tall = {**PLAN, "one_pass_tokens": 1024}
    times = [column_sums.compute_seconds([S], 16, tall, TILES) for S in range(64, 5000, 64)]
    assert all(after >= before for before, after in pairwise(times))


# --- machine code -----------------------------------------------------------------------------------------------------


def kernel(lines: list[str]) -> Kernel:
    """Of instructions and labels, one a line."""
    text = ['\t.section\t.text._Z,"ax",@progbits']
    address = 0
    for line in lines:
        if line.endswith(":"):
            text.append(line)
            continue
        predicate, _, rest = line.partition(" ") if line.startswith("@") else ("", "", line)
        text.append(f"        /*{address:04x}*/ {predicate:>6} {rest} ;")
        address += 16
    return Kernel("sums", "90", Usage(128, 0, 0, 1024), parse(text)["_Z"])


def loop(number: int, exponentials: int) -> list[str]:
    """One over tiles: a loop of loads, a rare branch, a product, and the exponentials."""
    return [
        f".L_x_{number}0:",
        f".L_x_{number}1:",
        "LDG.E R1, [R2.64]",
        f"@P0 BRA `(.L_x_{number}1)",
        f"@P1 BRA `(.L_x_{number}2)",
        *["FMUL R1, R1, R2"] * 50,
        f".L_x_{number}2:",
        "HMMA.16816.F32.BF16 R4, R8, R12, R4",
        "HMMA.1688.F32.BF16 R4, R8, R12, R4",
        *["MUFU.EX2 R1, R2"] * exponentials,
        f"@P2 BRA `(.L_x_{number}0)",
    ]


def test_tiles_leave_out_what_does_not_run_for_each():
    tiles = tiles_of(kernel([*loop(1, 64), *loop(2, 90), *loop(3, 70), "EXIT"]), 64)
    others = 4  # two products, and two branches: one round what is rare, and the loop's own
    assert tiles == tuple(Tile(n + others, n, 16 * 8 * 16 + 16 * 8 * 8) for n in (90, 70, 64))


def test_loops_over_channels_count_as_often_as_they_run():
    inner = [".L_x_9:", *["FFMA R1, R2, R3, R1"] * 128, "@P3 BRA `(.L_x_9)"]
    lines = [*loop(1, 64), *loop(2, 90), *loop(3, 70)]
    place = lines.index("HMMA.16816.F32.BF16 R4, R8, R12, R4")
    (*_, columns) = tiles_of(kernel([*lines[:place], *inner, *lines[place:], "EXIT"]), 72)
    assert columns.issued == 64 + 4 + 36 * 129


def test_code_that_is_not_understood_is_refused():
    with pytest.raises(ValueError, match="sums has 2 loops over tiles; expected 3"):
        tiles_of(kernel([*loop(1, 64), *loop(2, 90), "EXIT"]), 64)


def test_tiles_of_the_built_kernels(hopper):
    """The products are those of queries and keys, the exponentials one a logit; the rest is a few for each of those."""
    for name, of in hopper.items():
        if not name.startswith("column_sums_kernel<bfloat16, ") or name.endswith(", 0>"):
            continue
        channels = int(name[:-1].partition(", ")[2])
        one, stats, columns = tiles_of(of, channels)
        assert {tile.products for tile in (one, stats, columns)} == {32 * 64 * channels}
        assert [tile.special >= least for tile, least in ((one, 80), (stats, 68), (columns, 64))] == [True] * 3
        assert one.special < 100
        assert 64 * 5 < columns.issued < stats.issued < one.issued < 64 * 14


def test_the_exchanges_are_the_built_kernels(hopper, work, monkeypatch):
    """Each waits at one cluster barrier.

    Two more are the first, at which a cluster finds out that it is there, and that of the policy distinct's steps.
    """
    monkeypatch.setenv("VISIONZIP_PLAN", "path=cluster,select=ranks")
    for op, source in (("zip", "attn"), ("zip_qk", "qk")):
        barriers = size_of(hopper[f"zip_kernel<bfloat16, {source}, ClusterTeam>"]).cluster_barriers
        assert work(replace(ONE, op=op)).exchanges == barriers - 2


# --- the program ------------------------------------------------------------------------------------------------------


@pytest.fixture
def faked(monkeypatch, tmp_path):
    """No library is read, and results lie in a folder of the test's."""
    monkeypatch.setattr(program, "_kernels", lambda path: EMPTY)
    monkeypatch.setattr(model, "tiles_of", lambda kernel, channels: TILES)
    monkeypatch.setattr(program, "RESULTS", tmp_path)
    return tmp_path


def measure(folder: Path, median: float) -> None:
    """As if the benchmarks had been run on an H200."""
    content = {"cases": [{"name": ONE.name, "seconds": {"ours": {"median": 1.0}, "ours-graph": {"median": median}}}]}
    (folder / f"{slug(H200.device)}.json").write_text(json.dumps(content))


def test_json_tells_modelled_from_measured(faked, capsys):
    measure(faked, 7.25e-6)
    assert program.main(["--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["modelled"] is True
    assert [case["name"] for case in told["cases"]] == [case.name for case in cuda_cases()]
    of = next(case for case in told["cases"] if case["name"] == ONE.name)["gpus"]
    assert of["H100"]["measured_microseconds"] is None
    assert of["H200"]["measured_microseconds"] == pytest.approx(7.25)
    parts = of["H200"]["modelled_microseconds"]
    assert parts["total"] == pytest.approx(sum(parts.values()) - parts["total"], abs=0.01)
    assert all(constant["source"] for constant in [*told["constants"].values(), *told["bandwidths"].values()])


def test_the_table_says_what_is_modelled(faked, capsys):
    measure(faked, 7.25e-6)
    assert program.main(["--filter", ONE.name]) == 0
    told = capsys.readouterr().out
    (line,) = (line for line in told.splitlines() if ONE.name in line)
    assert "Modelled, not measured" in told
    assert line.split()[-1] == "7.2"
    assert line.count(" -") == 1


def test_constants_have_sources(capsys):
    assert program.main(["--constants"]) == 0
    told = capsys.readouterr().out
    assert "memory latency" in told
    assert "3.35e+12" in told


def test_a_plan_that_cannot_be_is_refused_in_the_planners_words(faked, monkeypatch, capsys):
    monkeypatch.setenv("VISIONZIP_PLAN", "path=cluster,team=99")
    assert program.main(["--filter", ONE.name]) == 1
    assert capsys.readouterr().err.startswith("VISIONZIP_PLAN=path=cluster,team=99 cannot be taken")


def test_without_a_library_it_says_why(tmp_path, capsys):
    assert program.main([str(tmp_path / "none.so")]) == 1
    assert "none.so is not there: the package was built without CUDA" in capsys.readouterr().err
