"""The tuner: plans that can be, a file that survives being cut off, and the thresholds that figures imply."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # not installed: benchmarks belong to the source tree

import benchmarks.tune as command  # noqa: E402
from benchmarks.cases import quick_cases  # noqa: E402
from benchmarks.timers import HostTimer  # noqa: E402
from benchmarks.tune_sweeps import (  # noqa: E402
    DEFAULT,
    FACTORS,
    VARIABLES,
    cpu_sweeps,
    cuda_sweeps,
    overridden,
    planned,
    quick_sweeps,
    under,
)
from benchmarks.tune_thresholds import cpu_factors, cuda_thresholds  # noqa: E402
from visionzip_ext import _C  # noqa: E402

THRESHOLDS = {name: value for name, (value, _) in _C.cuda_thresholds(compute_capability=90).items()}


@pytest.mark.parametrize("sweeps", [cpu_sweeps(), cuda_sweeps()], ids=["cpu", "cuda"])
def test_sweeps_are_told_apart(sweeps):
    assert len({sweep.name for sweep in sweeps}) == len(sweeps)
    for sweep in sweeps:
        assert len(set(sweep.plans)) == len(sweep.plans)


def refusal(case, plan: str) -> str:
    try:
        return "" if planned(case, plan)["path"] != "none" else "none"
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("sweep", cuda_sweeps(), ids=lambda sweep: sweep.name)
def test_every_plan_of_a_gpu_is_one(sweep):
    """On a Hopper; what has no room there is what a sweep is to tell, and nothing else may be refused."""
    for plan in (DEFAULT, *sweep.plans):
        words = refusal(sweep.case, plan)
        assert not words or words.endswith("shared memory of 232448 bytes is too small")


@pytest.mark.parametrize("sweep", cpu_sweeps(), ids=lambda sweep: sweep.name)
def test_every_factor_of_the_cpu_is_one(sweep):
    for plan in sweep.plans:
        with overridden(VARIABLES["cpu"], plan):
            assert _C.cpu_factors()[sweep.about] == float(plan.removeprefix(f"{sweep.about}="))


def test_each_factor_is_swept_around_the_codes():
    assert FACTORS.keys() == _C.cpu_factors().keys()
    for name, values in FACTORS.items():
        assert min(values) < _C.cpu_factors()[name] < max(values)
        assert _C.cpu_factors()[name] in values


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("tile=1", 'VISIONZIP_CPU_PLAN has the key "tile"; expected least_tokens, head_rounds'),
        ("least_tokens=0", 'VISIONZIP_CPU_PLAN has least_tokens="0"; expected 1 to 1048576'),
        ("most_above_mean=0.9", 'most_above_mean="0.9"; expected a number from 1 to 1000'),
        ("column_work=nan", 'column_work="nan"; expected a number from 0 to 1000'),
    ],
)
def test_what_is_no_factor_is_refused(monkeypatch, value, message):
    monkeypatch.setenv(VARIABLES["cpu"], value)
    with pytest.raises(ValueError, match=message):
        _C.plan("zip", B=1, S=577, C=1024, H=16, D=64, k=54, m=10)
    case = quick_cases()[0]
    with pytest.raises(ValueError, match=message):
        under(VARIABLES["cpu"], value)(case, case.inputs(torch.device("cpu"), 0))()


def test_no_factor_changes_a_bit():
    """least_tokens shares short images, head_rounds divides queries, the rest divides packed images."""
    plans = ("least_tokens=1", "head_rounds=1000", "most_above_mean=1", "column_work=0")
    for case in (replace(case, B=3) if not case.lengths else case for case in quick_cases()):
        inputs = case.inputs(torch.device("cpu"), 0)
        expected = under(VARIABLES["cpu"], DEFAULT)(case, inputs)()
        for plan in plans:
            assert torch.equal(under(VARIABLES["cpu"], plan)(case, inputs)(), expected), (case.name, plan)


def test_a_plan_is_taken_for_its_call_alone(monkeypatch):
    monkeypatch.setenv("VISIONZIP_CPU_PLAN", "least_tokens=5")
    with overridden("VISIONZIP_CPU_PLAN", "head_rounds=64"):
        assert _C.cpu_factors()["head_rounds"] == 64
        assert _C.cpu_factors()["least_tokens"] != 5
    assert os.environ["VISIONZIP_CPU_PLAN"] == "least_tokens=5"


class CutOff(Exception):
    pass


def test_what_was_cut_off_goes_on(tmp_path, monkeypatch, capsys):
    """The second call measures what the first did not, and keeps what it did."""
    output = tmp_path / "machine.plan.json"
    arguments = ["--quick", "--filter", "zip/", "--output", str(output)]
    measured = []

    def measure(case, *rest):
        if len(measured) == 1 and case.name not in measured:
            raise CutOff
        measured.append(case.name)
        return real(case, *rest)

    real = command.measure
    monkeypatch.setattr(command, "measure", measure)
    with pytest.raises(CutOff):
        command.main(arguments)
    first = json.loads(output.read_text())["sweeps"]
    assert len(first) == 1
    monkeypatch.setattr(command, "measure", real)
    assert command.main(arguments) == 0
    both = json.loads(output.read_text())["sweeps"]
    assert both[0] == first[0]
    assert len(both) == len(quick_sweeps("cpu", [case for case in quick_cases() if case.op == "zip"]))
    assert {DEFAULT, "least_tokens=8"} <= both[1]["seconds"].keys()


def test_what_was_disturbed_is_measured_again(tmp_path):
    """And nothing else."""
    output = tmp_path / "machine.plan.json"
    assert command.main(["--quick", "--output", str(output)]) == 0
    first = {sweep["name"]: sweep for sweep in json.loads(output.read_text())["sweeps"]}
    assert command.main(["--quick", "--filter", "merge", "--again", "--output", str(output)]) == 0
    second = {sweep["name"]: sweep for sweep in json.loads(output.read_text())["sweeps"]}
    assert first.keys() == second.keys()
    for name in first:
        assert (first[name] != second[name]) == ("merge" in name)


def test_a_limit_leaves_the_rest(tmp_path, capsys):
    output = tmp_path / "machine.plan.json"
    assert command.main(["--quick", "--time-limit", "0", "--output", str(output)]) == 0
    assert "8 sweeps are left: the same command goes on with them" in capsys.readouterr().out


def test_a_file_of_other_code_begins_anew(tmp_path, capsys):
    output = tmp_path / "machine.plan.json"
    arguments = ["--quick", "--filter", "merge", "--output", str(output)]
    assert command.main(arguments) == 0
    content = json.loads(output.read_text())
    content["environment"]["revision"] = "another"
    output.write_text(json.dumps(content))
    assert command.main(arguments) == 0
    assert "begins anew, as it is of other revision" in capsys.readouterr().out
    assert json.loads(output.read_text())["environment"]["revision"] != "another"


def test_a_plan_that_cannot_be_is_told(tmp_path):
    """And the others are measured."""
    sweep = replace(quick_sweeps("cpu", quick_cases())[0], plans=("least_tokens=8", "least_tokens=none"))
    content = {"sweeps": []}
    assert (
        command.run([sweep], VARIABLES["cpu"], HostTimer(), command.QUICK, content, None, 60, command.Terminal()) == 0
    )
    (own,) = content["sweeps"]
    assert own["seconds"].keys() == {DEFAULT, "least_tokens=8"}
    assert "expected 1 to 1048576" in own["failures"]["least_tokens=none"]


@pytest.mark.parametrize("arguments", [["--device", "cuda", "--dry-run"], ["--device", "cuda", "--dry-run", "--quick"]])
def test_a_dry_run(arguments, capsys):
    assert command.main(arguments) == 0
    assert " plans" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--filter", "nothing"], "no sweep's name contains"),
        (["--dry-run"], "--dry-run is for --device cuda"),
    ],
)
def test_what_cannot_be_swept(arguments, words, capsys):
    assert command.main(arguments) == 2
    assert words in capsys.readouterr().out


def timing(median: float, spread: float = 0.0) -> dict:
    return {
        "median": median,
        "first_quartile": median - spread,
        "third_quartile": median + spread,
        "calls": 50,
        "rows_right": 1.0,
    }


def measured(about: str, seconds: dict[str, float], spread: float = 0.0, **case) -> dict:
    case = {"op": "zip", "B": 1, "S": 577, "H": 16, **case}
    return {"name": about, "about": about, **case, "seconds": {plan: timing(s, spread) for plan, s in seconds.items()}}


def values(implied) -> dict[str, float]:
    return {each.name: each.value for each in implied}


def test_a_factor_changes_where_another_is_quicker_beyond_noise():
    current = {"least_tokens": 32.0}
    seconds = {DEFAULT: 0.7, "least_tokens=8": 1.1, "least_tokens=32": 1.0, "least_tokens=64": 0.8}
    assert values(cpu_factors([measured("least_tokens", seconds)], current)) == {"least_tokens": 64}
    noisy = measured("least_tokens", seconds, spread=0.9)
    assert values(cpu_factors([noisy], current)) == current


def test_a_factor_must_be_quicker_over_all_cases():
    half = measured("least_tokens", {"least_tokens=32": 1.0, "least_tokens=64": 0.8})
    other = measured("least_tokens", {"least_tokens=32": 1.0, "least_tokens=64": 1.4})
    assert values(cpu_factors([half, other], {"least_tokens": 32.0})) == {"least_tokens": 32}


def test_what_was_not_measured_implies_nothing():
    assert cpu_factors([], {"least_tokens": 32.0}) == []
    assert cuda_thresholds([], THRESHOLDS, 132) == []
    failed = measured("team", {})
    assert cuda_thresholds([failed], THRESHOLDS, 132) == []


def test_thresholds_of_a_gpu():
    def teams(B, best, threads):
        plans = [(team, size) for team in range(2, 17) for size in (512, 256)]
        cost = {f"team={t},threads={size}": 1 + abs(t - best) + (size != threads) for t, size in plans}
        return measured("team", cost, B=B)

    sweeps = [
        teams(1, 14, 512),
        teams(160, 3, 256),
        measured("staging", {"team=8,staged=1": 1.0, "team=8,staged=0": 2.0}, B=16),
        measured("staging", {"team=8,staged=1": 2.0, "team=8,staged=0": 1.0}, B=33),
        measured("selection", {"team=16,select=ranks": 1.0, "team=16,select=digits": 2.0}),
        measured("selection", {"team=4,select=ranks": 2.0, "team=4,select=digits": 1.0}),
        measured("grid", {"path=block": 2.0, "path=grid,team=2": 1.0}, B=66),
        measured("grid", {"path=block": 1.0, "path=grid,team=2": 2.0}, B=264),
        measured("sums", {"sum_chunks=1": 1.0, "sum_chunks=8": 2.0}),
        measured("sums", {"sum_chunks=1": 2.0, "sum_chunks=4": 1.0, "sum_chunks=8": 2.0}, B=33),
    ]
    assert values(cuda_thresholds(sweeps, THRESHOLDS, 132)) == {
        "most_cluster_team": 14,
        "least_cluster_team": 3,
        "many_images_threads": 256,
        "staging_waves": round(16 * 8 / 132, 2),
        "rank_comparisons": 577 * 40,
        "block_path_images": 2.0,
        "column_sum_waves": 33 * 16 * 2 / 132,
    }
