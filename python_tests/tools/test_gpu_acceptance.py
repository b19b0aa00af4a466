"""The command for machines with a GPU: how it treats its steps, and a dry run of it all without one."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support import emulation

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # not installed: benchmarks belong to the source tree

from benchmarks.cases import cuda_cases  # noqa: E402
from benchmarks.terminal import Terminal  # noqa: E402
from tools.gpu_acceptance import __main__ as acceptance  # noqa: E402
from tools.gpu_acceptance import every_path, machine, profile, runner, steps  # noqa: E402
from tools.gpu_acceptance.runner import Step  # noqa: E402
from tools.gpu_acceptance.state import Outcome, State, header  # noqa: E402

TERMINAL = Terminal()
HEADER = {"revision": "1", "sources": "a", "device": "a GPU"}


def step(code: str, name: str = "a step", share: float = 0.3, **options) -> Step:
    """A Python program as a step."""
    return Step(name, share, lambda _: [sys.executable, "-c", code], **options)


@pytest.fixture
def state(tmp_path):
    return State(tmp_path, HEADER)


@pytest.fixture
def run(state):
    """A call; its outcomes, in the order in which steps were treated."""

    def call(*given: Step, total: float = 100.0) -> list[Outcome]:
        return list(runner.run_steps(given, total, state, TERMINAL))

    return call


def words(outcomes: list[Outcome]) -> list[str]:
    return [outcome.word for outcome in outcomes]


def test_a_failing_step_is_recorded_and_the_next_is_run(run):
    outcomes = run(step("print('all well')"), step("raise SystemExit(3)", "second"), step("", "third"))
    assert words(outcomes) == ["passed", "failed", "passed"]
    assert outcomes[0].tail == ("all well",)


def test_without_a_needed_step_none_is_run(run):
    needed = step("raise SystemExit(1)", needed=True)
    assert words(run(needed, step("", "second"), step("", "third"))) == ["failed", "not run", "not run"]
    assert words(run(step("", needed=True), step("", "second"))) == ["passed", "passed"]  # the next call tries again


def is_free(path: Path) -> bool:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_step_that_takes_too_long_is_ended_with_all_that_it_started(run, tmp_path):
    """What it started holds a lock for as long as it lives; it is not waited for, and dies in its own time."""
    path = tmp_path / "lock"
    child = f"import fcntl, time; file = open({str(path)!r}, 'w'); fcntl.flock(file, fcntl.LOCK_EX); time.sleep(600)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert words(run(step(code, share=0.02))) == ["timed out"]
    assert any(is_free(path) or time.sleep(0.1) for _ in range(600))


def test_a_call_that_is_ended_ends_its_step(tmp_path):
    """A step that lived on would disturb the next call."""
    path = tmp_path / "lock"
    holding = f"import fcntl, time; file = open({str(path)!r}, 'w'); fcntl.flock(file, fcntl.LOCK_EX); time.sleep(600)"
    code = f"""
import sys
from tools.gpu_acceptance import __main__ as acceptance
from tools.gpu_acceptance.runner import Step
step = Step("a step", 0.9, lambda _: [sys.executable, "-c", {holding!r}])
acceptance.emulated_steps = lambda folder: [step]
acceptance.main(["--emulated", "--output", {str(tmp_path)!r}])
"""
    call = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    assert any((path.exists() and not is_free(path)) or time.sleep(0.1) for _ in range(300))
    call.terminate()
    assert call.wait(30) == acceptance.FAILED
    assert is_free(path)
    assert len((tmp_path / "state.jsonl").read_text().splitlines()) == 1  # the header: the step has not ended


def test_what_does_not_fit_is_put_off_and_comes_first_in_the_next_call(run):
    long = step("import time; time.sleep(60)", "long", share=0.2)
    large, small = step("", "large", share=0.9), step("", "small", share=0.3)
    outcomes = run(long, large, small, total=5.0)
    assert words(outcomes) == ["timed out", "put off", "passed"]
    assert outcomes[1].tail[0].startswith("it has 4 s, ")
    outcomes = run(long, step("", "another"), large, small, total=5.0)
    assert [(outcome.step, outcome.word) for outcome in outcomes] == [("large", "passed"), ("another", "passed")]


def test_a_step_that_goes_on_is_put_off_until_it_is_done(run, tmp_path):
    """By what it prints; it is as well with less than all of the work that its share allows."""
    file = tmp_path / "work"
    code = f"from pathlib import Path; f = Path({str(file)!r}); print('' if f.exists() else '2 are left'); f.touch()"
    sweep = step(code, unfinished="are left")
    assert words(run(sweep)) == ["put off"]
    assert words(run(sweep)) == ["passed"]
    assert run(sweep) == []


def test_a_missing_program_fails(run):
    (outcome,) = run(Step("a step", 0.1, lambda _: ["no-such-program-anywhere"]))
    assert outcome.word == "failed"
    assert "No such file" in outcome.tail[0]


def test_a_missing_tool_is_skipped(run):
    (outcome,) = run(step("", tool="no-such-program-anywhere"))
    assert (outcome.word, outcome.tail) == ("skipped", ("no-such-program-anywhere is not installed",))
    assert run(step("", tool="no-such-program-anywhere")) == []


@pytest.mark.parametrize("status", [0, 1])
@pytest.mark.parametrize("refusal", runner.REFUSALS)
def test_a_tool_that_refuses_is_skipped_with_its_reason(run, refusal, status):
    """Whatever its exit status; a step that needs no tool fails or passes by its status alone."""
    code = f"print('begun'); print('Error: {refusal}.'); print('end'); raise SystemExit({status})"
    tooled, plain = run(step(code, tool="sh"), step(code, "without"))
    assert (tooled.word, tooled.tail) == ("skipped", (f"Error: {refusal}.",))
    assert plain.word == ("failed" if status else "passed")


def test_progress_is_told(monkeypatch, capsys, state):
    monkeypatch.setattr(runner, "HEARTBEAT", 0.5)
    code = "import time; print('half way', flush=True); time.sleep(1.5)"
    list(runner.run_steps([step(code)], 100, state, Terminal()))
    told = capsys.readouterr().out
    assert "[1/1] a step" in told
    assert "s: half way" in told


def test_a_call_goes_on_where_one_was_cut_off(tmp_path):
    """In the middle of a line, too. What was needed is run again, as the machine may be another."""
    state = State(tmp_path, HEADER)
    given = [step("", "build", needed=True), step("", "first"), step("", "second")]
    calls = runner.run_steps(given, 100, state, TERMINAL)
    assert [next(calls).step, next(calls).step] == ["build", "first"]
    calls.close()
    with (tmp_path / "state.jsonl").open("a") as file:
        file.write('{"step": "sec')
    again = State(tmp_path, HEADER)
    assert not again.is_new
    assert again.outcomes == state.outcomes
    assert [outcome.step for outcome in runner.run_steps(given, 100, again, TERMINAL)] == ["build", "second"]
    last = State(tmp_path, HEADER)
    assert last.outcomes.keys() == {"build", "first", "second"}
    assert runner.left(given, last) == []


@pytest.mark.parametrize("other", [{"revision": "2"}, {"sources": "b"}, {"device": "another GPU"}])
def test_of_another_revision_or_gpu_it_begins_anew(state, tmp_path, other):
    state.add(Outcome("a step", "passed"))
    assert State(tmp_path, HEADER).has_finished("a step")
    assert not State(tmp_path, {**HEADER, **other}).outcomes
    assert not State(tmp_path, HEADER).outcomes  # nor is it known any more


def test_figures_of_another_revision_are_removed(tmp_path):
    acceptance.begin(tmp_path, "it", False, TERMINAL)
    files = [*steps.figures(tmp_path), steps.swept(tmp_path), steps.profiled(tmp_path)]
    for file in files:
        file.write_text("{}")
    acceptance.begin(tmp_path, "it", False, TERMINAL)
    assert all(file.exists() for file in files)
    acceptance.begin(tmp_path, "it", True, TERMINAL)
    assert not any(file.exists() for file in files)


def test_the_header_tells_sources_apart(monkeypatch, tmp_path):
    monkeypatch.setattr("tools.gpu_acceptance.state.ROOT", tmp_path)
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "a.cu").write_text("1")
    first = header("it")
    assert first == header("it")
    assert (first["revision"], first["device"]) == (None, "it")
    (tmp_path / "csrc" / "a.cu").write_text("2")
    assert header("it")["sources"] != first["sources"]


def test_the_file_names_no_path_of_this_machine(run, tmp_path):
    outcomes = run(step(f"print({str(ROOT / 'csrc')!r}, {str(Path.home() / 'x')!r})"))
    assert outcomes[0].tail == ("./csrc ~/x",)
    text = json.dumps(acceptance.results(outcomes, "device", tmp_path))
    assert str(ROOT) not in text
    assert str(Path.home()) not in text


def test_the_file_holds_the_benchmarks_and_the_steps(run, tmp_path):
    outcomes = run(step(""))
    assert acceptance.results(outcomes, "device", tmp_path)["environment"] == {"device": "device"}
    for op in ("zip", "merge"):
        content = {"environment": {"device": "it"}, "summary": {op: {"cases": 1}}, "cases": [{"name": op}]}
        (tmp_path / f"benchmarks-{op}.json").write_text(json.dumps(content))
    (tmp_path / "encoders.json").write_text(json.dumps({"encoder": [{"name": "b"}]}))
    (tmp_path / "machine.json").write_text(json.dumps({"machine": {"copy_bytes_per_second": 1}}))
    content = acceptance.results(outcomes, "device", tmp_path)
    assert content["environment"] == {"device": "it"}
    assert content["encoder"] == [{"name": "b"}]
    assert content["machine"] == {"copy_bytes_per_second": 1}
    assert content["cases"] == [{"name": "zip"}, {"name": "merge"}]
    assert content["summary"] == {"zip": {"cases": 1}, "merge": {"cases": 1}}
    assert content["acceptance"]["steps"][0]["word"] == "passed"


def test_the_file_is_written_after_each_step(monkeypatch, state, tmp_path):
    """Each step finds those before it in the file."""
    seen = []
    file = tmp_path / "it.json"

    def run_step(given, *_):
        seen.append([each["step"] for each in json.loads(file.read_text())["acceptance"]["steps"]] if seen else [])
        return Outcome(given.name, "passed")

    monkeypatch.setattr(runner, "run_step", run_step)
    acceptance.call([step("", "first"), step("", "second"), step("", "third")], 100, state, "it", TERMINAL)
    assert seen == [[], ["first"], ["first", "second"]]


def test_steps_on_a_gpu(tmp_path):
    every = {step.name: step for step in acceptance.gpu_steps("90", tmp_path)}
    checks = ["build", "machine", "every path", "operator tests", "grid path", "block path", "global path"]
    checks += ["memcheck", "racecheck"]
    benchmarks = [f"benchmarks {op}" for op in ("zip", "zip_qk", "merge", "zip_packed")]
    assert list(every) == [*checks, "sweep", "profile", "encoders", *benchmarks]
    assert every["build"].environment["VISIONZIP_CUDA_ARCHS"] == "90-real"
    assert [step.name for step in every.values() if step.needed] == ["build"]
    assert every["operator tests"].environment == {"VISIONZIP_REQUIRE_CUDA": "1"}
    assert {"python_tests/operators", "python_tests/tokens"} <= {*map(str, every["operator tests"].command(100))}
    assert (ROOT / "python_tests" / "operators" / "test_cuda.py").exists()
    assert [*every["racecheck"].command(50)][:3] == ["compute-sanitizer", "--kernel-name", "kns=visionzip"]
    assert {step.tool for step in every.values()} == {"", "compute-sanitizer", "ncu"}
    assert [*map(str, every["encoders"].command(50))][-4:-2] == ["--output", str(tmp_path / "encoders.json")]
    assert every["benchmarks zip"].command(100)[-2:] == ["--time-limit", "85"]
    assert every["sweep"].command(100)[-2:] == ["--time-limit", "70"]
    assert every["sweep"].unfinished in (ROOT / "benchmarks" / "tune.py").read_text()


def test_no_step_starves(tmp_path):
    """Whatever comes first in a call fits beside a build that took all of its share."""
    shares = {step.name: step.share for step in acceptance.gpu_steps("90", tmp_path)}
    build = shares.pop("build")
    assert max(shares.values()) + build < 0.95


def test_each_case_is_measured_by_one_step_and_its_file_is_found(tmp_path):
    filters, outputs = [], set()
    for step in acceptance.gpu_steps("90", tmp_path):
        if step.name.startswith("benchmarks "):
            command = [*step.command(100)]
            filters.append(command[command.index("--filter") + 1])
            outputs.add(command[command.index("--output") + 1])
    for case in cuda_cases():
        assert sum(text in case.name for text in filters) == 1, case.name
    assert len(outputs) == len(filters)
    assert outputs <= {*steps.figures(tmp_path)}


def test_every_path_walks_all(tmp_path):
    assert {"cluster", *steps.OTHER_PATHS} == {*every_path.PATHS}


def test_the_machine_is_measured_on_the_cpu_too(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "COPIED", {"cpu": 1 << 20})
    assert machine.main(["--device", "cpu", "--output", str(tmp_path / "machine.json")]) == 0
    facts = json.loads((tmp_path / "machine.json").read_text())["machine"]
    assert facts.keys() == {"copy_bytes_per_second", "seconds_for_nothing", "seconds_for_the_smallest_kernel"}
    assert min(facts.values()) > 0


@pytest.mark.skipif(bool(emulation.MISSING_REASON), reason=emulation.MISSING_REASON)
@pytest.mark.parametrize(("architecture", "most"), [("80", 0), ("90", 16)])
def test_clusters_are_counted_as_plans_count_them(monkeypatch, architecture, most):
    monkeypatch.setenv(emulation.ARCHITECTURE_VARIABLE, architecture)
    monkeypatch.setenv(emulation.MULTIPROCESSORS_VARIABLE, "40")
    code = (
        "import sys, torch\nfrom tools.gpu_acceptance import machine\ntorch.ops.load_library(sys.argv[1])\n"
        "print(machine.clusters_at_once(torch.ops.visionzip_emulated, torch.device('cpu')))"
    )
    emulation.build("visionzip_emulated")
    library = emulation.RESULTS / "libvisionzip_emulated.so"
    asked = subprocess.run([sys.executable, "-c", code, library], cwd=ROOT, check=True, capture_output=True, text=True)
    expected = {blocks: 40 // blocks if blocks <= most else 0 for blocks in range(1, 17)}
    assert asked.stdout.strip() == str(expected)


FAKE_NCU = """#!/bin/sh
echo '==PROF== Connected'
test -n "$ROWS" && printf '"ID","Metric Name","Metric Value"\\n"0","gpu__time_duration.sum","11"\\n'
exit $STATUS
"""


@pytest.mark.parametrize(("rows", "status", "expected"), [("1", "0", 0), ("", "0", 1), ("1", "9", 1)])
def test_the_profile_needs_counters(tmp_path, monkeypatch, rows, status, expected):
    """A run of ncu that counts nothing has found no kernel of ours."""
    (tmp_path / "ncu").write_text(FAKE_NCU)
    (tmp_path / "ncu").chmod(0o755)
    for name, value in {"PATH": f"{tmp_path}:/usr/bin:/bin", "ROWS": rows, "STATUS": status}.items():
        monkeypatch.setenv(name, value)
    table = tmp_path / "ncu.csv"
    assert profile.main(["--output", str(table)]) == expected
    assert table.exists() == (expected == 0)
    if table.exists():
        assert table.read_text().splitlines() == [
            '"ID","Metric Name","Metric Value"',
            '"0","gpu__time_duration.sum","11"',
        ]


@pytest.mark.parametrize("path", ["grid", "block", "global"])
def test_the_tests_of_decisions_are_run_on_each_path(path, tmp_path):
    (step,) = (step for step in acceptance.gpu_steps("90", tmp_path) if step.name == f"{path} path")
    assert step.environment == {"VISIONZIP_REQUIRE_CUDA": "1", every_path.PLAN_VARIABLE: f"path={path}"}
    files = [word for word in step.command(60) if word.startswith("python_tests/")]
    assert {"python_tests/operators/test_decisions.py", "python_tests/operators/test_packed.py"} <= {*files}
    assert all((ROOT / file).exists() for file in files)


@pytest.mark.parametrize("present", [True, False])
def test_pytest_with_and_without_its_plugins(monkeypatch, present):
    monkeypatch.setattr(steps, "has", lambda module: present)
    command = steps.pytest_command()
    assert ("-n" in command) == present
    assert ("-c" in command) != present


@pytest.mark.skipif(torch.cuda.is_available(), reason="the error is for machines without a GPU")
def test_without_a_gpu(capsys):
    assert acceptance.main([]) == 2
    assert "--emulated" in capsys.readouterr().out


def test_a_call_of_no_time_is_refused(capsys):
    with pytest.raises(SystemExit):
        acceptance.main(["--emulated", "--minutes", "0.25"])
    assert "--minutes is 0.25; expected more than 0.25" in capsys.readouterr().err


def test_it_starts_before_anything_is_built():
    code = "import sys, tools.gpu_acceptance; assert not {'visionzip_ext', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_path_complains(monkeypatch):
    """About a path that gives other bits, and about what is wrong on all."""
    monkeypatch.delenv(every_path.PLAN_VARIABLE, raising=False)
    case = every_path.cases()[0]
    cpu, right = torch.device("cpu"), every_path.compute
    assert every_path.complaints(torch.ops.visionzip, case, cpu, ("grid", "block")) == []

    def differs(ops, case, inputs):
        tokens, *rest = right(ops, case, inputs)
        return tokens + (every_path.os.environ[every_path.PLAN_VARIABLE] == "path=block"), *rest

    monkeypatch.setattr(every_path, "compute", differs)
    found = every_path.complaints(torch.ops.visionzip, case, cpu, ("grid", "block"))
    assert found == [f"{case.name}: block and grid differ"]
    monkeypatch.setattr(every_path, "compute", lambda *arguments: [x + 1 for x in right(*arguments)])
    found = every_path.complaints(torch.ops.visionzip, case, cpu, ("grid", "block"))
    assert found == [f"{case.name}: 0% of the rows are right"]
    assert every_path.PLAN_VARIABLE not in every_path.os.environ


@pytest.mark.skipif(bool(emulation.MISSING_REASON), reason=emulation.MISSING_REASON)
def test_dry_run(tmp_path):
    """Everything but the GPU: all steps pass, in as many calls as it takes, and the file can be compared."""
    emulation.build(*steps.EMULATED_TARGETS)  # not in the dry run's time
    command = [sys.executable, "-m", "tools.gpu_acceptance", "--emulated", "--output", tmp_path]
    for _ in range(3):
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != acceptance.LEFT:
            break
    assert done.returncode == 0, done.stdout
    content = json.loads((tmp_path / "emulated.json").read_text())
    outcomes = content["acceptance"]["steps"]
    assert [outcome["step"] for outcome in outcomes] == [step.name for step in steps.emulated_steps(tmp_path)]
    assert {outcome["word"] for outcome in outcomes} == {"passed"}
    assert all(case["seconds"].keys() >= {"ours", "released"} for case in content["cases"])
    assert content["cases"]
    assert content["machine"]["copy_bytes_per_second"] > 0
    assert content["machine"]["emulated_clusters_at_once"].keys() == {str(blocks) for blocks in range(1, 17)}
