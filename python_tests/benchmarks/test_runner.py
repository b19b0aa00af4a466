"""The benchmarks' own logic, at tiny sizes; no absolute time."""

from __future__ import annotations

import functools
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # not installed: benchmarks belong to the source tree

import benchmarks.__main__ as command  # noqa: E402
from benchmarks import (  # noqa: E402
    plot,
    report,
    terminal,
)
from benchmarks.cases import BATCHES, BUDGETS, DTYPES, Case, cpu_cases, cuda_cases, quick_cases  # noqa: E402
from benchmarks.environment import environment  # noqa: E402
from benchmarks.places import slug  # noqa: E402
from benchmarks.providers import CPU_PROVIDERS, copy, eager, given_lse, is_for, ours, read, sdpa  # noqa: E402
from benchmarks.pytorch_forms import best, best_by_heads, released  # noqa: E402
from benchmarks.runner import (  # noqa: E402
    Result,
    Settings,
    Timing,
    float64_tokens,
    measure,
    quartiles,
    rows_right,
)
from benchmarks.timers import MOST_INPUT_SETS, HostTimer  # noqa: E402

CPU = torch.device("cpu")
FLOAT32 = [case for case in quick_cases() if case.dtype == torch.float32]
BRIEF = Settings(seconds=0.0, least_rounds=3, warm_up_rounds=1)


def result(case: Case, **medians: float) -> Result:
    timings = {name: Timing(seconds, seconds * 0.9, seconds * 1.1, 5, 1.0) for name, seconds in medians.items()}
    return Result(case, timings, 2)


def test_names_are_unique():
    for cases in (cpu_cases(), cuda_cases(), quick_cases()):
        assert len({case.name for case in cases}) == len(cases)


def test_the_promised_cases_are_there():
    promised = {(B, dtype, *budget) for B in BATCHES for dtype in DTYPES for budget in BUDGETS}
    clip = [case for case in cpu_cases() if case.op == "zip"]
    assert {(case.B, case.dtype, case.k, case.m) for case in clip if case.policy == "attention"} == promised
    distinct = {(case.B, case.dtype, case.k, case.m) for case in clip if case.policy == "distinct"}
    assert distinct == {(B, dtype, 54, 0) for B in BATCHES for dtype in DTYPES}
    assert {(case.S, case.C, case.H, case.D) for case in clip} == {(577, 1024, 16, 64)}
    assert any(not case.has_cls for case in cpu_cases())


@pytest.mark.parametrize("case", quick_cases(), ids=lambda case: case.name)
def test_inputs(case):
    """Repeatable, of the case's dtype, keys transposed as attention has them; softmaxed where attention is given."""
    inputs, again, other = case.inputs(CPU, 1), case.inputs(CPU, 1), case.inputs(CPU, 2)
    dtypes = {"assignment": torch.int64, "cu_seqlens": torch.int32}
    for name, x in inputs.items():
        assert torch.equal(x, again[name])
        assert x.dtype == dtypes.get(name, case.dtype)
    assert not torch.equal(inputs["hidden"], other["hidden"])
    if case.lengths:
        assert inputs["cu_seqlens"].diff().tolist() == list(case.lengths)
        assert len(inputs["keys"]) == case.group * len(inputs["hidden"]) == case.group * sum(case.lengths)
    elif "keys" in inputs:
        assert inputs["keys"].transpose(1, 2).is_contiguous()
    if "attn" in inputs:
        assert inputs["attn"].shape == (case.B, case.H, case.S, case.S)
        sums = inputs["attn"][:, :, 0].float().sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0.02, atol=0)


@pytest.mark.parametrize("name", CPU_PROVIDERS)
@pytest.mark.parametrize("case", FLOAT32, ids=lambda case: case.name)
def test_providers_are_right(monkeypatch, case, name):
    """As the command finds it; each is measured on what it is for, and on nothing else. The compiler compiles once."""
    if case.op != "zip":
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    own = {name: CPU_PROVIDERS[name]} if is_for(name, case) else {}
    measured = measure(case, own, small_cache(), BRIEF)
    assert not measured.failures
    assert all(timing.rows_right >= 0.9 for timing in measured.timings.values())
    assert measured.timings.keys() == own.keys()


@pytest.mark.parametrize("name", [name for name in CPU_PROVIDERS if not name.startswith("compiled")])
def test_a_timed_call_works_out_no_budgets(monkeypatch, name):
    """They are the caller's, who has them before; the first call is not timed, as its result is checked."""
    (case,) = (case for case in quick_cases() if case.lengths)
    call = CPU_PROVIDERS[name](case, case.inputs(CPU, 0))
    call()
    monkeypatch.setattr("benchmarks.cases.allocate_budgets", None)
    call()


@pytest.mark.parametrize("case", FLOAT32, ids=lambda case: case.name)
def test_the_best_forms_are_right(case):
    inputs = case.inputs(CPU, 0)
    for form in (best, best_by_heads) if case.needs_all_queries else (best,):
        tokens = form(case, inputs)
        assert rows_right(tokens.unsqueeze(0) if case.lengths else tokens, float64_tokens(case, inputs)) >= 0.9


def test_a_read_is_of_hidden_and_keys():
    case = quick_cases()[0]
    inputs = case.inputs(CPU, 0)
    call = read(case, inputs)
    assert call.source.nbytes == inputs["hidden"].nbytes + inputs["keys"].nbytes
    assert call() == call.source.numel()


def test_attention_is_that_of_the_layer():
    """Of packed images each attends to itself."""
    for case in (case for case in FLOAT32 if case.needs_all_queries):
        inputs = case.inputs(CPU, 0)
        call = sdpa(case, inputs)
        assert len(call.layers) == (len(case.lengths) or 1)
        queries, keys = call.layers[-1]
        expected = (queries @ keys.mT * case.scale).softmax(-1) @ keys
        torch.testing.assert_close(call(), expected)


def test_the_log_sum_exp_that_is_given_is_that_of_the_rows():
    """A wrong one would be seen: the results are right only with the right one."""
    for case in (case for case in FLOAT32 if case.needs_all_queries):
        inputs = case.inputs(CPU, 0)
        torch.testing.assert_close(given_lse(ours)(case, inputs)(), ours(case, inputs))


@pytest.mark.parametrize(("k", "m"), [(5, 3), (30, 5), (5, 31), (5, 17), (1, 1), (54, 10)])
@pytest.mark.parametrize("op", ["zip", "zip_qk", "merge"])
def test_the_best_form_is_the_released_one(op, k, m):
    """Also where targets are next to each other, and where one token remains to be merged."""
    case = Case("m", op, B=2, S=k + 32, C=7, H=2, D=8, k=k, m=m, dtype=torch.float32)
    inputs = case.inputs(CPU, 0)
    torch.testing.assert_close(best(case, inputs), released(case, inputs))


@pytest.mark.parametrize(
    "case", [case for case in cuda_cases() if is_for("compiled", case, "cuda")], ids=lambda case: case.name
)
def test_the_best_form_depends_on_no_data(case):
    """So that it can be compiled as one graph and recorded; of the largest cases too, of which nothing is computed."""
    with FakeTensorMode():
        tokens = best(case, case.inputs(CPU, 0))
    assert tokens.shape == (case.B, case.k + case.m, case.C)
    assert tokens.dtype == case.dtype


def test_the_released_form_depends_on_data():
    case = cuda_cases()[0]
    with FakeTensorMode(), pytest.raises(DynamicOutputShapeException):
        released(case, case.inputs(CPU, 0))


def test_a_copy_moves_the_operators_bytes():
    case = quick_cases()[0]
    call = copy(case, case.inputs(CPU, 0))
    assert 2 * call.source.nbytes == case.bytes_moved
    assert torch.equal(call(), call.source)
    assert call() is call.destination


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
    case, timer = cpu_cases()[0], HostTimer()
    assert timer.cache_bytes >= 1 << 20
    for timer.cache_bytes in (1 << 20, 32 << 20):
        assert timer.input_sets(case) * case.bytes_moved >= 2 * timer.cache_bytes
    timer.cache_bytes = 1
    assert timer.input_sets(case) == 2
    timer.cache_bytes = 1 << 40
    assert timer.input_sets(quick_cases()[0]) == MOST_INPUT_SETS


def test_quartiles():
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == (2.0, 3.0, 4.0)


def small_cache() -> HostTimer:
    timer = HostTimer()
    timer.cache_bytes = 1 << 20
    return timer


def test_providers_take_turns_and_inputs_rotate():
    """No provider runs twice in a row, and no two in a row get the same inputs."""
    seen = []

    def spy(name):
        def function(case, inputs):
            seen.append((name, inputs["hidden"].data_ptr()))
            return released(case, inputs)

        return eager(function)

    measured = measure(quick_cases()[0], {"a": spy("a"), "b": spy("b")}, small_cache(), BRIEF)
    timed = seen[2:]  # after the check of each
    assert [name for name, _ in timed] == ["a", "b"] * 4
    assert all(one[1] != other[1] for one, other in itertools.pairwise(timed))
    assert measured.timings["a"].calls == BRIEF.least_rounds
    assert measured.input_sets > 2


def test_gradients_are_off_while_measuring():
    enabled = []

    def function(case, inputs):
        enabled.append(torch.is_grad_enabled())
        return released(case, inputs)

    measure(quick_cases()[0], {"a": eager(function)}, small_cache(), BRIEF)
    assert enabled
    assert not any(enabled)


def failing_at(count: int):
    """A provider whose call raises the count-th time; 0: it cannot be prepared."""
    made = itertools.count(1)

    def prepare(case, inputs):
        if count == 0:
            raise RuntimeError("does not compile\nbecause")

        def call():
            if next(made) == count:
                raise torch.OutOfMemoryError("out of memory")
            return released(case, inputs)

        return call

    return prepare


@pytest.mark.parametrize(
    ("count", "why"),
    [(0, "RuntimeError: does not compile"), (1, "OutOfMemoryError: out of memory"), (4, "OutOfMemoryError: ")],
    ids=["prepared", "checked", "timed"],
)
def test_who_fails_is_told_and_the_others_are_measured(count, why):
    case = quick_cases()[0]
    measured = measure(case, {"released": failing_at(count), "ours": eager(released)}, small_cache(), BRIEF)
    assert list(measured.timings) == ["ours"]
    assert measured.timings["ours"].calls == BRIEF.least_rounds
    assert measured.failures["released"].startswith(why)
    assert report.failures([measured]) == [f"released: {measured.failures['released']} ({case.name})"]
    assert not report.we_failed([measured])
    assert report.times([measured]).rows[0][-1] == "failed"
    assert report.as_json([measured], BRIEF, {})["cases"][0]["failures"] == measured.failures


def test_all_failing_ends_at_once():
    measured = measure(quick_cases()[0], {"ours": failing_at(0)}, small_cache(), Settings(seconds=1e9))
    assert not measured.timings
    assert report.we_failed([measured])
    assert report.ratios([measured]).rows[0][1] == "-"


def test_inputs_that_do_not_fit_are_told(monkeypatch):
    def inputs(self, device, seed):
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr(Case, "inputs", inputs)
    measured = measure(quick_cases()[0], CPU_PROVIDERS, small_cache(), BRIEF)
    assert measured.failures == dict.fromkeys(CPU_PROVIDERS, "its inputs: OutOfMemoryError: too large")


def test_speedup_and_summary():
    """Over the fastest of PyTorch's forms, whichever that is; the released one is none of them."""
    first, second, third = quick_cases()[:3]
    results = [
        result(first, **{"ours": 1.0, "best-eager": 30.0, "compiled": 40.0, "released": 20.0, "read": 0.5}),
        result(second, **{"ours": 2.0, "best-eager": 30.0, "compiled": 20.0, "released": 90.0, "read": 1.8}),
        result(third, ours=1.0, released=30.0),
    ]
    assert [each.strongest for each in results] == ["best-eager", "compiled", None]
    assert results[0].speedup(results[0].strongest) == 30
    assert results[2].speedup(results[2].strongest) is None
    numbers = {"median": 20.0, "least": 10.0, "cases": 2, "median_of_roofline": 0.7, "least_of_roofline": 0.5}
    assert report.summary(results) == {"zip": numbers}
    (line,) = report.summary_lines(results)
    assert line.startswith("zip: 20.0 times as fast as PyTorch's best form (median of 2 cases), at least 10.0 times")
    assert line.endswith("70% of the machine's bandwidth in the median, at least 50%")


def test_the_graph_stands_for_us_where_there_is_one():
    measured = result(quick_cases()[0], **{"ours": 3.0, "ours-graph": 2.0, "released": 30.0, "copy": 1.5})
    assert measured.our_best == "ours-graph"
    assert measured.speedup("released") == 15
    table = report.ratios([measured])
    assert table.columns[:5] == ("case", "GB/s", "of a copy", "x strongest", "x released")
    assert table.rows[0][2:5] == ["75%", "-", "15.0 x"]
    (case,) = report.as_json([measured], BRIEF, {})["cases"]
    assert case["ratios"] == {"released": 15, "copy": 0.75}
    assert case["gigabytes_per_second"]["ours-graph"] == measured.case.bytes_moved / 2e9


def test_a_wrong_result_is_reported():
    case = quick_cases()[0]
    wrong = Result(case, {"ours": Timing(1, 1, 1, 3, 0.5)}, 2)
    wrong_graph = Result(case, {"ours": Timing(1, 1, 1, 3, 1.0), "ours-graph": Timing(1, 1, 1, 3, 0.5)}, 2)
    assert report.wrong([wrong, result(case, ours=1.0), wrong_graph]) == [case.name] * 2


def test_slug():
    assert slug("AMD EPYC 9B14 (2.6 GHz)") == "amd-epyc-9b14-2-6-ghz"


def test_the_environment_names_no_host_and_no_path():
    text = json.dumps(environment(HostTimer()))
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

    monkeypatch.setitem(CPU_PROVIDERS, "ours", eager(wrong))
    assert command.main(["--quick", "--filter", "zip/tiny/B2/k5-m3/float32"]) == 1
    assert "wrong result: zip/tiny/B2/k5-m3/float32" in capsys.readouterr().out


def test_a_failure_of_ours_fails_the_command(monkeypatch, capsys):
    monkeypatch.setitem(CPU_PROVIDERS, "ours", failing_at(0))
    assert command.main(["--quick", "--filter", "zip/tiny/B2/k5-m3/float32"]) == 1
    assert "not measured: ours: RuntimeError: does not compile (zip/tiny" in capsys.readouterr().out


def test_the_time_limit_drops_no_case_silently(tmp_path, capsys):
    output = tmp_path / "out.json"
    assert command.main(["--quick", "--time-limit", "0", "--output", str(output)]) == 1
    written = json.loads(output.read_text())
    assert [case["name"] for case in written["cases"]] == [case.name for case in quick_cases()]
    assert all(case["failures"]["ours"] == "the time limit was reached before" for case in written["cases"])
    assert "no plot: nothing was measured" in capsys.readouterr().out


def test_providers_of_choice(capsys):
    assert command.main(["--quick", "--filter", "merge/tiny/B2/k5-m3/float32", "--providers", "ours"]) == 0
    assert "x released" not in capsys.readouterr().out
    assert command.main(["--quick", "--providers", "copy"]) == 2
    assert "--providers: with --device cpu there is no copy" in capsys.readouterr().out


def test_without_transformers_the_rest_is_kept(monkeypatch, capsys):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert command.encoders("cpu", command.Terminal()) == []
    assert "transformers is not installed" in capsys.readouterr().out


def test_no_such_case(capsys):
    assert command.main(["--filter", "nothing like it"]) == 2
    assert "--list" in capsys.readouterr().out


def test_list(capsys):
    assert command.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == [case.name for case in cpu_cases()]


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "benchmarks", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "--filter" in done.stdout


@pytest.fixture
def without_rich(monkeypatch):
    monkeypatch.setattr(terminal, "Console", None)


@pytest.mark.usefixtures("without_rich")
def test_without_rich(capsys):
    assert command.main(["--quick", "--filter", "zip/tiny/B2/k5-m3/float32"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[told.index("") + 1].split() == ["case", "ours", "best-eager", "compiled", "released", "read"]
    assert "[1/1] zip/tiny/B2/k5-m3/float32" in told


def test_plain_table_is_aligned():
    table = terminal.Table(("case", "x"), [("a", "10"), ("long name", "2")], "caption")
    assert terminal.plain(table).splitlines() == ["", "case        x", "a          10", "long name   2", "(caption)"]


def test_plot(tmp_path):
    case = quick_cases()[0]
    results = [
        result(case, **{"ours": 2e-5, "ours-graph": 1e-5, "released": 3e-4, "copy": 8e-6}),
        result(case, ours=1e-5),
    ]
    content = report.as_json(results, BRIEF, {"device": "any", "torch": "2"})
    path = tmp_path / "plot.png"
    assert plot.draw(content, path) == f"drawn in {path}"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_no_plot_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    content = report.as_json([result(quick_cases()[0], ours=1.0)], BRIEF, {"device": "any", "torch": "2"})
    assert plot.draw(content, tmp_path / "plot.png") == "no plot: matplotlib is not installed"
