"""The gate on kernels' speed: made-up results, at and around its boundary."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # not installed: benchmarks belong to the source tree

from benchmarks import compare as gate

CASE = "zip/model/B1/k54-m10/bfloat16"


def timing(median: float, spread: float = 0.0, calls: int = 100, rows_right: float = 1.0) -> dict:
    """`spread`: the interquartile range as a share of the median."""
    half = median * spread / 2
    return {
        "median": median,
        "first_quartile": median - half,
        "third_quartile": median + half,
        "calls": calls,
        "rows_right": rows_right,
    }


def results(cases: dict[str, dict[str, dict]], **environment: str) -> dict:
    return {
        "environment": {"device": "any", **environment},
        "cases": [{"name": name, "seconds": timings, "failures": {}} for name, timings in cases.items()],
    }


def words(old: dict, new: dict) -> list[str]:
    return [verdict.word for verdict in gate.compare(old, new)]


def one(ours: float, spread: float = 0.0, calls: int = 100, **others: float) -> dict:
    yardsticks = others or {"copy": 8.0}
    return results({CASE: {"ours": timing(ours, spread, calls), **{k: timing(v) for k, v in yardsticks.items()}}})


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: dict) -> str:
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("fraction", "word"),
    [
        (0.80, "same"),
        (0.7201, "same"),
        (0.72, "same"),  # exactly 10 % below 0.8
        (0.7199, "worse"),
        (0.40, "worse"),
        (0.8799, "same"),
        (0.8801, "better"),
    ],
)
def test_boundary_without_noise(fraction, word):
    assert words(one(10.0, copy=8.0), one(8.0 / fraction, copy=8.0)) == [word]


def test_noise_widens_the_boundary():
    """IQR 20 % of 100 calls: ±3.14 % of a median, and of a ratio of two such timings with two exact ones ±4.44 %."""
    noise = 0.2 * 1.57 / 10 * 2**0.5
    old = one(10.0, spread=0.2)
    assert words(old, one(10.0 / (1 - 0.1 - noise + 0.001), spread=0.2)) == ["same"]
    assert words(old, one(10.0 / (1 - 0.1 - noise - 0.001), spread=0.2)) == ["worse"]


def test_what_is_too_noisy_does_not_pass():
    """With this spread a fall by 10 % could not be seen; one far beyond it can."""
    assert words(one(10.0), one(10.0, spread=0.5, calls=9)) == ["too noisy"]
    assert words(one(10.0), one(100.0, spread=0.5, calls=9)) == ["worse"]
    assert gate.Verdict(CASE, "ours", word="too noisy").fails


def test_a_slower_machine_is_no_regression():
    old = results({CASE: {"ours": timing(10.0), "copy": timing(8.0), "compiled-graph": timing(50.0)}})
    new = results({CASE: {"ours": timing(30.0), "copy": timing(24.0), "compiled-graph": timing(150.0)}})
    assert words(old, new) == ["same", "same"]


def test_each_yardstick_counts():
    old = one(10.0, **{"copy": 8.0, "compiled-graph": 50.0})
    assert words(old, one(10.0, **{"copy": 8.0, "compiled-graph": 40.0})) == ["same", "worse"]


def test_the_released_form_counts_only_where_there_is_no_better_yardstick():
    """Eager, it measures the host as well."""
    assert words(one(10.0, released=100.0), one(10.0, released=80.0)) == ["worse"]
    assert words(one(10.0, released=100.0, copy=8.0), one(10.0, released=80.0, copy=8.0)) == ["same"]


def test_of_the_forms_in_pytorch_the_old_runs_fastest_counts():
    old = one(10.0, **{"read": 8.0, "best-eager": 50.0, "compiled": 40.0, "released": 90.0})
    assert words(old, one(10.0, **{"read": 8.0, "best-eager": 10.0, "compiled": 40.0})) == ["same", "same"]
    assert words(old, one(10.0, **{"read": 8.0, "best-eager": 50.0, "compiled": 30.0})) == ["same", "worse"]
    assert words(old, one(10.0, **{"read": 6.0, "best-eager": 50.0, "compiled": 40.0})) == ["worse", "same"]


def test_graphs_are_compared_with_graphs():
    old = results({CASE: {"ours": timing(11.0), "ours-graph": timing(10.0), "copy": timing(8.0)}})
    new = copy.deepcopy(old)
    new["cases"][0]["seconds"]["ours-graph"] = timing(12.0)
    verdicts = gate.compare(old, new)
    assert [(verdict.provider, verdict.word) for verdict in verdicts] == [("ours", "same"), ("ours-graph", "worse")]
    assert verdicts[1].change == pytest.approx(10 / 12 - 1)


def test_what_is_missing_fails():
    old = one(10.0)
    assert words(old, results({})) == ["missing"]
    assert words(old, results({CASE: {"copy": timing(8.0)}})) == ["missing"]
    assert words(old, results({CASE: {"ours": timing(10.0)}})) == ["missing"]  # its yardstick
    assert words(results({CASE: {"ours": timing(10.0)}}), old) == ["missing"]  # never had one
    assert words(results({CASE: {}}), results({})) == ["missing"]


def test_a_failure_fails():
    new = results({CASE: {"copy": timing(8.0)}})
    new["cases"][0]["failures"] = {"ours": "OutOfMemoryError: too large"}
    assert words(one(10.0), new) == ["failed"]


def test_a_wrong_result_fails_however_fast():
    new = one(1.0)
    new["cases"][0]["seconds"]["ours"]["rows_right"] = 0.5
    assert words(one(10.0), new) == ["wrong"]


def test_a_new_case_passes():
    new = results({CASE: one(10.0)["cases"][0]["seconds"], "another": {"ours": timing(1.0)}})
    assert words(one(10.0), new) == ["same", "new"]


def test_one_regression_among_many_fails_the_command(write, capsys):
    names = [f"case {number}" for number in range(20)]
    old = results({name: {"ours": timing(10.0), "copy": timing(8.0)} for name in names})
    new = copy.deepcopy(old)
    new["cases"][7]["seconds"]["ours"] = timing(12.0)
    new["cases"][9]["seconds"]["ours"] = timing(5.0)
    assert gate.main([write("old.json", old), write("new.json", old)]) == 0
    assert "20 same\npassed" in capsys.readouterr().out
    assert gate.main([write("old.json", old), write("new.json", new)]) == 1
    told = capsys.readouterr().out
    assert "case 7" in told
    assert "-16.7%" in told
    assert "case 9" in told
    assert "+100.0%" in told
    assert "case 8 " not in told
    assert "1 worse, 1 better, 18 same\nFAILED" in told


def test_the_limit_can_be_set(write):
    old, new = write("old.json", one(10.0)), write("new.json", one(10.5))
    assert gate.main([old, new]) == 0
    assert gate.main([old, new, "--limit", "0.02"]) == 1


def test_what_changed_besides_is_told(write, capsys):
    old = results({CASE: one(10.0)["cases"][0]["seconds"]}, torch="2.10")
    new = results({CASE: one(10.0)["cases"][0]["seconds"]}, torch="2.11")
    assert gate.main([write("old.json", old), write("new.json", new)]) == 0
    assert "torch: 2.10, now 2.11" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("new", "why"),
    [
        ({"environment": {"device": "another"}, "cases": []}, "measured on different devices: any and another"),
        ({"cases": []}, "is no file of results"),
        ([], "is no file of results"),
    ],
)
def test_what_cannot_be_compared(write, capsys, new, why):
    assert gate.main([write("old.json", one(10.0)), write("new.json", new)]) == 2
    assert why in capsys.readouterr().out


def test_an_empty_or_missing_file_passes_nothing(write, tmp_path, capsys):
    empty = write("old.json", results({}))
    assert gate.main([empty, empty]) == 2
    assert gate.main([empty, str(tmp_path / "none.json")]) == 2
    assert "No such file" in capsys.readouterr().out


def encoder(ours: float, memory: float = 1.0, wrong: bool = False) -> dict:
    """A file with one encoder, which the released way runs in ten seconds with ten bytes."""
    seconds = {"ours": [ours, ours, ours], "released": [10.0, 10.0, 10.0]}
    peaks = {"ours": memory, "released": 10.0}
    return {
        **results({}),
        "encoder": [{"name": "encoder/model", "seconds": seconds, "peak_bytes": peaks, "wrong": wrong}],
    }


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (encoder(7.0), ["same", "same"]),
        (encoder(7.7), ["same", "same"]),
        (encoder(7.9), ["worse", "same"]),
        (encoder(6.0), ["better", "same"]),
        (encoder(7.0, memory=1.2), ["same", "worse"]),
        (encoder(7.0, wrong=True), ["wrong"]),
        (results({}), ["missing"]),
    ],
)
def test_encoders(new, expected):
    assert words(encoder(7.0), new) == expected


def test_a_new_encoder_passes():
    assert words(results({}), encoder(7.0)) == ["new"]


def test_times_of_an_encoder_that_swing_are_too_noisy():
    swinging = encoder(7.0)
    swinging["encoder"][0]["seconds"]["ours"] = [5.0, 7.0, 9.0]
    assert words(encoder(7.0), swinging) == ["too noisy", "same"]
