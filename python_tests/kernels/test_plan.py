"""Launch plans: made on the host, so that every GPU's can be looked at without one."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from visionzip_ext import _C

LLAVA = {"S": 577, "C": 1024, "H": 16, "D": 64, "k": 54, "m": 10}
GPUS = {  # compute capability, multiprocessors, most shared memory of a block
    "turing": (75, 40, 65536),
    "a100": (80, 108, 166912),
    "ada": (89, 142, 101376),
    "h200": (90, 132, 232448),
    "b200": (100, 148, 232448),
    "geforce-blackwell": (120, 170, 101376),
}


def plan(gpu: str, op: str = "zip", **problem) -> dict:
    capability, multiprocessors, shared_bytes = GPUS[gpu]
    return _C.plan_cuda(
        op,
        **{"B": 1, **LLAVA, **problem},
        compute_capability=capability,
        multiprocessors=multiprocessors,
        shared_bytes=shared_bytes,
    )


@pytest.mark.parametrize("batch", [1, 5, 32, 160, 100_000])
@pytest.mark.parametrize("op", ["zip", "zip_qk", "select", "select_qk"])
@pytest.mark.parametrize("gpu", GPUS)
def test_llava_runs_fused_on_every_gpu(gpu, op, batch):
    chosen = plan(gpu, op, B=batch)
    assert chosen["path"] in ("cluster", "grid", "block")
    assert chosen["shared_bytes"] <= GPUS[gpu][2]


def test_hopper_takes_a_cluster_of_sixteen_for_one_image():
    chosen = plan("h200", "zip_qk")
    assert (chosen["path"], chosen["team_blocks"], chosen["staged"]) == ("cluster", 16, True)


def test_clusters_stay_within_what_the_gpu_has():
    assert plan("geforce-blackwell")["team_blocks"] <= 8
    assert plan("a100")["path"] != "cluster"


GPCS = (18, 18, 18, 16, 16, 16, 16, 14)
"""Multiprocessors of a Hopper's processing clusters, which lie so that not all 132 of them can be in a cluster."""
CLUSTERS = {blocks: sum(gpc // blocks for gpc in GPCS) for blocks in range(1, 17)}


@pytest.mark.parametrize(
    ("batch", "team"),
    [(1, 16), (7, 16), (8, 14), (9, 9), (15, 8), (16, 7), (19, 6), (20, 5), (23, 5), (24, 4), (31, 4)],
)
def test_a_team_is_as_large_as_lets_all_images_run_at_once(batch, team):
    chosen = plan("h200", B=batch, clusters=CLUSTERS)
    assert (chosen["path"], chosen["team_blocks"], chosen["threads"]) == ("cluster", team, 512)
    assert chosen["blocks"] == batch * team
    assert CLUSTERS[team] >= batch
    assert team == 16 or CLUSTERS[team + 1] < batch
    assert chosen["staged"] == (team > 6)  # in one wave; six blocks have no room for it


@pytest.mark.parametrize(("batch", "team"), [(32, 7), (38, 6), (46, 5), (47, 4), (62, 4), (160, 4)])
def test_more_images_than_one_wave_share_multiprocessors(batch, team):
    """Two blocks of half the threads each, as large a team as still lets all images run at once."""
    chosen = plan("h200", B=batch, clusters=CLUSTERS)
    assert (chosen["path"], chosen["team_blocks"], chosen["threads"]) == ("cluster", team, 256)
    assert 2 * (chosen["shared_bytes"] + 1024) <= GPUS["h200"][2] + 1024


@pytest.mark.parametrize("batch", [1, 32, 160])
@pytest.mark.parametrize("op", ["zip_qk", "select"])
@pytest.mark.parametrize("gpu", GPUS)
def test_a_distinct_choice_of_llava_runs_fused_on_every_gpu(gpu, op, batch):
    chosen = plan(gpu, op, B=batch, m=0, policy="distinct")
    assert chosen["path"] in ("cluster", "grid", "block")
    assert chosen["shared_bytes"] <= GPUS[gpu][2]


@pytest.mark.parametrize(
    ("gpu", "path", "team"), [("h200", "cluster", 16), ("a100", "block", 1), ("turing", "grid", 3)]
)
def test_a_barrier_for_each_distinct_token_goes_over_global_memory_only_where_it_must(gpu, path, team):
    """Without clusters one block takes an image, where it has room for all of its keys."""
    chosen = plan(gpu, "select", m=0, policy="distinct")
    assert (chosen["path"], chosen["team_blocks"] >= team) == (path, True)
    assert (chosen["team_blocks"] == 1) == (path == "block")


def test_distinct_tokens_too_many_for_shared_memory_take_a_launch_each():
    assert plan("ada", "select", S=60_000, policy="distinct")["path"] == "global"
    longest = {"S": 65_536, "policy": "distinct"}
    assert plan("h200", "select", **longest)["path"] == "global"
    one, many = (plan("h200", "select", **longest, k=k)["scratch_bytes"] for k in (64, 6400))
    assert many - one >= 8 * (6400 - 64)  # a candidate for each step


def test_images_too_large_to_share_a_multiprocessor_do_not():
    chosen = plan("h200", B=160, S=8192)
    assert chosen["threads"] == 512
    assert 2 * (chosen["shared_bytes"] + 1024) > GPUS["h200"][2] + 1024


@pytest.mark.parametrize("gpu", ["a100", "ada"])
def test_without_clusters_images_beyond_one_wave_share_multiprocessors(gpu):
    few, many = (plan(gpu, B=waves * GPUS[gpu][1], S=100, k=20, m=5) for waves in (1, 2))
    assert (few["path"], few["threads"], few["blocks"]) == ("block", 512, GPUS[gpu][1])
    assert (many["path"], many["threads"], many["blocks"]) == ("block", 256, 2 * GPUS[gpu][1])


def test_no_team_is_larger_than_the_gpu_can_run(monkeypatch):
    """A part of a GPU, or one with multiprocessors switched off, may hold no large cluster at all."""
    assert plan("h200", clusters={16: 0})["team_blocks"] == 15
    assert plan("h200", clusters=dict.fromkeys(range(9, 17), 0))["team_blocks"] == 8
    assert plan("h200", clusters=dict.fromkeys(range(5, 17), 0))["team_blocks"] == 4
    monkeypatch.setenv("VISIONZIP_PLAN", "team=16")
    assert plan("h200", clusters={16: 0})["path"] != "cluster"


def test_a_gpu_or_a_build_without_clusters_takes_the_older_paths(monkeypatch):
    none = dict.fromkeys(range(1, 17), 0)
    assert plan("h200", clusters=none)["path"] == "grid"
    assert plan("h200", B=500, clusters=none)["path"] == "block"
    monkeypatch.setenv("VISIONZIP_PLAN", "path=cluster")
    with pytest.raises(ValueError, match="VISIONZIP_PLAN=path=cluster cannot be taken"):
        plan("h200", clusters=none)


def test_clusters_are_counted_by_their_blocks():
    with pytest.raises(ValueError, match="clusters is 17; expected keys from 1 to 16"):
        plan("h200", clusters={17: 1})


def test_large_batches_take_fewer_blocks_an_image():
    assert plan("h200", B=160)["team_blocks"] < plan("h200", B=1)["team_blocks"]


@pytest.mark.parametrize("gpu", ["turing", "a100", "ada", "h200"])
def test_blocks_of_a_grid_are_resident_together(gpu, monkeypatch):
    monkeypatch.setenv("VISIONZIP_PLAN", "path=grid")
    for batch in (1, 3, 50, 1000):
        chosen = plan(gpu, B=batch)
        assert chosen["path"] == "grid"
        assert chosen["blocks"] <= GPUS[gpu][1] * (512 // chosen["threads"])
        assert chosen["scratch_bytes"] > 0


@pytest.mark.parametrize("op", ["zip", "zip_qk"])
def test_hopper_holds_8192_tokens(op):
    assert plan("h200", op, S=8192)["path"] == "cluster"


@pytest.mark.parametrize(
    ("problem", "why"),
    [
        ({"S": 70_000}, "S is over 65535"),
        ({"S": 40_000}, "shared memory of 232448 bytes is too small"),
        ({"D": 40_000}, "shared memory of 232448 bytes is too small"),
        ({"op": "zip_qk", "has_cls": False, "S": 70_000}, "S is over 65535"),
    ],
)
def test_what_the_fused_kernel_has_no_room_for_takes_global_memory(problem, why):
    chosen = plan("h200", **problem)
    assert (chosen["path"], chosen["why"]) == ("global", f"several launches over global memory: {why}")


def test_scratch_grows_with_tokens_and_not_with_their_square():
    small, large = (plan("h200", "zip_qk", S=S, k=54, m=10)["scratch_bytes"] for S in (100_000, 1_000_000))
    assert 9 * small < large < 11 * small


@pytest.mark.parametrize(
    ("gpu", "problem", "why"),
    [
        ("h200", {"D": 300}, "D is over 256"),
        ("turing", {"D": 256, "element_bytes": 4}, "shared memory of 65536 bytes is too small for D = 256"),
    ],
)
def test_large_heads_are_scored_in_slices(gpu, problem, why):
    chosen = plan(gpu, "select_qk", has_cls=False, **problem)
    assert chosen["scoring"]["why"] == f"heads in slices of 32 channels: {why}"


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("op", ["zip", "zip_qk", "select", "select_qk"])
def test_every_size_has_a_plan(gpu, op):
    for S in (5_000, 9_000, 65_535, 65_536, 1_000_000):
        for D in (64, 300):
            for has_cls in (True, False):
                assert plan(gpu, op, S=S, D=D, has_cls=has_cls, k=S // 10, m=S // 20)["path"] != "none"


SIGLIP = {"S": 729, "C": 1152, "H": 16, "D": 72, "has_cls": False}


@pytest.mark.parametrize("batch", [1, 5, 160])
@pytest.mark.parametrize("element_bytes", [2, 4])
@pytest.mark.parametrize("op", ["zip_qk", "select_qk"])
@pytest.mark.parametrize("gpu", GPUS)
def test_siglip_is_scored_on_every_gpu(gpu, op, element_bytes, batch):
    chosen = plan(gpu, op, B=batch, element_bytes=element_bytes, **SIGLIP)
    assert chosen["path"] != "none"
    scoring = chosen["scoring"]
    assert scoring["shared_bytes"] <= GPUS[gpu][2]
    assert scoring["threads"] % 32 == 0
    assert scoring["threads"] <= 512
    assert scoring["sums_bytes"] == batch * 16 * 8 * 729 * 4
    assert scoring["blocks"] in {batch * 16 * blocks for blocks in (1, 2, 4, 8)}


@pytest.mark.parametrize(("gpu", "passes"), [("h200", "one pass"), ("a100", "one pass"), ("turing", "two passes")])
def test_siglip_takes_one_pass_where_its_keys_fit(gpu, passes):
    assert plan(gpu, "zip_qk", **SIGLIP)["scoring"]["why"].startswith(passes)


def test_the_passes_are_a_matter_of_the_length_alone():
    """Not of the batch: the same image must give the same bits."""
    sizes = [(1, 729), (64, 729), (1, 100), (7, 3000)]
    plans = [plan("ada", "zip_qk", **{**SIGLIP, "B": B, "S": S})["scoring"] for B, S in sizes]
    assert len({scoring["one_pass_tokens"] for scoring in plans}) == 1


def test_large_batches_are_scored_by_fewer_blocks_a_head():
    few, many = (plan("h200", "zip_qk", **SIGLIP, B=B)["scoring"]["why"] for B in (1, 160))
    assert (few, many) == ("one pass; blocks a head: 8", "one pass; blocks a head: 1")


@pytest.mark.parametrize("gpu", GPUS)
def test_a_problem_has_one_plan(gpu):
    """Whatever was planned between; kernels/plan_cases.cpp looks at what is not told here."""
    problems = [
        {"op": op, "B": B, "has_cls": has_cls, "S": S, "C": C}
        for op in ("zip", "zip_qk", "select")
        for B in (1, 160)
        for has_cls in (True, False)
        for S, C in ((577, 1024), (4096, 1280), (40_000, 64))
    ]
    forwards = [plan(gpu, **problem) for problem in problems]
    backwards = [plan(gpu, **problem) for problem in reversed(problems)]
    assert forwards == backwards[::-1]


@pytest.mark.parametrize("gpu", GPUS)
def test_more_images_than_a_launch_has_clusters_for(gpu):
    chosen = plan(gpu, B=2**31 - 1)
    assert chosen["path"] != "cluster"
    assert 0 < chosen["blocks"] <= GPUS[gpu][1] * (512 // chosen["threads"])


def test_only_all_queries_scores_need_a_launch():
    assert "scoring" not in plan("h200", "zip_qk")
    assert "scoring" not in plan("h200", "zip", has_cls=False)


QWEN = {"C": 1280, "H": 16, "D": 80, "k": 400, "m": 100, "has_cls": False}


def test_a_long_image_among_short_ones_has_as_large_a_team_as_alone():
    """Packed images are planned by their tokens: eight as long as the longest would each have a smaller team."""
    among_short = plan("h200", "zip_qk", **QWEN, B=64, S=4096, packed_tokens=4096 + 63 * 100)
    as_long = plan("h200", "zip_qk", **QWEN, B=64, S=4096, packed_tokens=64 * 4096)
    assert among_short["team_blocks"] == 16 > as_long["team_blocks"]


def test_the_attention_of_a_long_image_is_summed_by_more_blocks_a_head():
    problem = {**QWEN, "B": 64, "S": 4096}
    among_short, as_long = (
        plan("h200", "zip_qk", **problem, packed_tokens=tokens)["scoring"] for tokens in (4096 + 63 * 100, 64 * 4096)
    )
    assert among_short["blocks"] == 64 * 16 * 8 > as_long["blocks"]
    assert among_short["sums_bytes"] == (4096 + 63 * 100) * 16 * 8 * 4


@pytest.mark.parametrize("tokens", [4095, 64 * 4096 + 1, -1])
def test_packed_tokens_must_fit(tokens):
    with pytest.raises(ValueError, match=f"packed_tokens is {tokens}; expected 0, or S to B \\* S"):
        plan("h200", **QWEN, B=64, S=4096, packed_tokens=tokens)


def test_cpu_gives_whole_images_to_threads_and_shares_the_rest():
    chosen = _C.plan("zip", B=5, **LLAVA, threads=2)
    assert (chosen["whole_images"], chosen["shared_images"]) == (4, 1)


def test_cpu_shares_the_one_large_image_and_deals_the_small_ones():
    """One image forty times another: nobody waits for the thread that has it."""
    assert _C.divide_packed([1, 40, 1, 1, 1], threads=2) == ([[0, 3], [2, 4]], [1])
    assert _C.divide_packed([40], threads=2) == ([[], []], [0])
    assert _C.divide_packed([40], threads=1) == ([[0]], [])
    assert _C.divide_packed([], threads=2) == ([[], []], [])


@given(work=st.lists(st.floats(1, 1e6), max_size=60), threads=st.integers(1, 16))
def test_cpu_divides_packed_images_evenly(work, threads):
    """Each image once; no thread has more than 15 % above the mean; what is shared is what is largest."""
    whole, shared = _C.divide_packed(work, threads=threads)
    assert sorted([*(i for own in whole for i in own), *shared]) == list(range(len(work)))
    loads = [sum(work[i] for i in own) for own in whole]
    assert max(loads) * threads <= 1.15 * sum(loads) * (1 + 1e-9)
    dealt = [work[i] for own in whole for i in own]
    assert not shared or not dealt or min(work[i] for i in shared) >= max(dealt)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ({"op": "zap"}, 'op is "zap"; expected zip, zip_qk, select, select_qk or merge'),
        ({"S": 0}, "S is 0; expected 1"),
        ({"k": 578}, "k is 578; expected 0 to S"),
        ({"m": 600}, "m is 600; expected 0 to S - k"),
        ({"B": -1}, "B is -1; expected 0"),
    ],
)
def test_a_problem_that_is_none_is_refused(problem, message):
    arguments = {"op": "zip", "B": 1, **LLAVA, **problem}
    for function in (_C.plan, _C.plan_cuda):
        with pytest.raises(ValueError, match=message):
            function(arguments["op"], **{name: value for name, value in arguments.items() if name != "op"})
