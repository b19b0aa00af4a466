"""The benchmarks' own logic, at tiny sizes; no absolute time."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # not installed: benchmarks belong to the source tree

import benchmarks.__main__ as command  # noqa: E402
from benchmarks import report  # noqa: E402
from benchmarks.cases import BATCHES, BUDGETS, DTYPES, Case, all_cases, quick_cases  # noqa: E402
from benchmarks.providers import PROVIDERS, recipe  # noqa: E402
from benchmarks.runner import (  # noqa: E402
    MOST_INPUT_SETS,
    Result,
    Settings,
    Timing,
    float64_tokens,
    input_sets,
    last_level_cache,
    measure,
    quartiles,
    rows_right,
)

CPU = torch.device("cpu")
FLOAT32 = [case for case in quick_cases() if case.dtype == torch.float32]
BRIEF = Settings(seconds=0.0, least_rounds=3, warm_up_rounds=1)


def result(case: Case, **medians: float) -> Result:
    timings = {name: Timing(seconds, seconds * 0.9, seconds * 1.1, 5, 1.0) for name, seconds in medians.items()}
    return Result(case, timings, 2)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_names_are_unique():
    for cases in (all_cases(), quick_cases()):
        assert len({case.name for case in cases}) == len(cases)


def test_the_promised_cases_are_there():
    promised = {(B, dtype, *budget) for B in BATCHES for dtype in DTYPES for budget in BUDGETS}
    clip = [case for case in all_cases() if case.op == "zip"]
    assert {(case.B, case.dtype, case.k, case.m) for case in clip} == promised
    assert {(case.S, case.C, case.H, case.D) for case in clip} == {(577, 1024, 16, 64)}
    assert any(not case.has_cls for case in all_cases())


@pytest.mark.parametrize("case", quick_cases(), ids=lambda case: case.name)
def test_inputs(case):
    """Repeatable, of the case's dtype, keys transposed as attention has them; softmaxed where attention is given."""
    inputs, again, other = case.inputs(CPU, 1), case.inputs(CPU, 1), case.inputs(CPU, 2)
    for name, x in inputs.items():
        assert torch.equal(x, again[name])
        assert x.dtype == (torch.int64 if name == "assignment" else case.dtype)
    assert not torch.equal(inputs["hidden"], other["hidden"])
    if "keys" in inputs:
        assert inputs["keys"].transpose(1, 2).is_contiguous()
    if "attn" in inputs:
        assert inputs["attn"].shape == (case.B, case.H, case.S, case.S)
        sums = inputs["attn"][:, :, 0].float().sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0.02, atol=0)


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize(
    "case", [case for case in quick_cases() if case.dtype == torch.float32], ids=lambda case: case.name
)
def test_providers_are_right(case, name):
    inputs = case.inputs(CPU, 0)
    assert rows_right(PROVIDERS[name](case, inputs), float64_tokens(case, inputs)) >= 0.9


def test_bytes():
    case = Case("m", "zip", B=2, S=10, C=4, H=3, D=8, k=3, m=2, dtype=torch.bfloat16)
    hidden, keys, rows, tokens, decision = 10 * 4 * 2, 3 * 10 * 8 * 2, 3 * 10 * 2, 5 * 4 * 2, (3 + 10) * 8
    assert case.bytes_moved == 2 * (hidden + keys + rows + tokens + decision)


def test_rows_right():
    expected = torch.randn(2, 6, 5, dtype=torch.float64)
    assert rows_right(expected.float(), expected) == 1
    assert rows_right(expected.bfloat16(), expected) == 1
    assert rows_right(expected.flip(1).float(), expected) == 1
    spoiled = expected.float()
    spoiled[0, 0] += 1
    spoiled[1, 3] = float("nan")
    assert rows_right(spoiled, expected) == pytest.approx(10 / 12)


def test_input_sets_outgrow_the_cache():
    case = all_cases()[0]
    for cache in (1 << 20, 32 << 20):
        assert input_sets(case, cache) * case.bytes_moved >= 2 * cache
    assert input_sets(case, 1) == 2
    assert input_sets(quick_cases()[0], 1 << 40) == MOST_INPUT_SETS
    assert last_level_cache() >= 1 << 20


def test_quartiles():
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == (2.0, 3.0, 4.0)


def test_providers_take_turns_and_inputs_rotate(monkeypatch):
    """No provider runs twice in a row, and no two in a row get the same inputs."""
    seen = []

    def spy(name):
        def provider(case, inputs):
            seen.append((name, inputs["hidden"].data_ptr()))
            return recipe(case, inputs)

        return provider

    monkeypatch.setattr("benchmarks.runner.last_level_cache", lambda: 1 << 20)
    measured = measure(quick_cases()[0], {"a": spy("a"), "b": spy("b")}, CPU, BRIEF)
    timed = seen[2:]  # after the check of each
    assert [name for name, _ in timed] == ["a", "b"] * 4
    assert all(one[1] != other[1] for one, other in itertools.pairwise(timed))
    assert measured.timings["a"].calls == BRIEF.least_rounds
    assert measured.input_sets > 2


def test_gradients_are_off_while_measuring():
    enabled = []

    def provider(case, inputs):
        enabled.append(torch.is_grad_enabled())
        return recipe(case, inputs)

    measure(quick_cases()[0], {"a": provider}, CPU, BRIEF)
    assert not any(enabled)


def test_speedup_and_summary():
    first, second, third = quick_cases()[:3]
    results = [result(first, ours=1.0, recipe=30.0), result(second, ours=2.0, recipe=20.0), result(third, ours=1.0)]
    assert results[0].speedup() == 30
    assert report.summary(results) == {"zip": {"median": 20.0, "least": 10.0, "cases": 2}}
    (line,) = report.summary_lines(results)
    assert line.startswith("zip: 20.0 times as fast")


def test_a_wrong_result_is_reported():
    case = quick_cases()[0]
    wrong = Result(case, {"ours": Timing(1, 1, 1, 3, 0.5)}, 2)
    assert report.wrong([wrong, result(case, ours=1.0)]) == [case.name]


def test_slug():
    assert report.slug("AMD EPYC 9B14 (2.6 GHz)") == "amd-epyc-9b14-2-6-ghz"


def test_the_environment_names_no_host_and_no_path():
    text = json.dumps(report.environment())
    assert str(ROOT) not in text
    assert str(Path.home()) not in text


def test_command(tmp_path, capsys, threads):
    output = tmp_path / "results" / "out.json"
    assert command.main(["--quick", "--filter", "float32", "--threads", "1", "--output", str(output)]) == 0
    told = capsys.readouterr().out
    written = json.loads(output.read_text())
    expected = [case.name for case in quick_cases() if "float32" in case.name]
    assert [case["name"] for case in written["cases"]] == expected
    assert all(name in told for name in expected)
    assert written["environment"]["threads"] == 1
    for case in written["cases"]:
        for timing in case["seconds"].values():
            assert 0 < timing["first_quartile"] <= timing["median"] <= timing["third_quartile"]
            assert timing["rows_right"] == pytest.approx(1, abs=0.2)


def test_a_wrong_result_fails_the_command(monkeypatch, capsys):
    def wrong(case, inputs):
        return torch.zeros(case.B, case.k + case.m, case.C, dtype=case.dtype)

    monkeypatch.setitem(PROVIDERS, "ours", wrong)
    assert command.main(["--quick", "--filter", "zip/tiny/B2/k5-m3/float32"]) == 1
    assert "wrong result: zip/tiny/B2/k5-m3/float32" in capsys.readouterr().out


def test_no_such_case(capsys):
    assert command.main(["--filter", "nothing like it"]) == 2
    assert "--list" in capsys.readouterr().out


def test_list(capsys):
    assert command.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == [case.name for case in all_cases()]


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "benchmarks", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "--filter" in done.stdout
