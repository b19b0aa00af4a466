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

from benchmarks.terminal import Terminal  # noqa: E402
from tools.gpu_acceptance import __main__ as acceptance  # noqa: E402
from tools.gpu_acceptance import every_path  # noqa: E402

TERMINAL = Terminal()


@pytest.fixture(autouse=True)
def work(monkeypatch, tmp_path):
    """A folder of its own for what steps print."""
    monkeypatch.setattr(acceptance, "WORK", tmp_path)
    monkeypatch.setattr(acceptance, "MEASURED", tmp_path / "benchmarks.json")
    monkeypatch.setattr(acceptance, "ENCODERS", tmp_path / "encoders.json")
    return tmp_path


def step(code: str, limit: float = 30.0, **options) -> acceptance.Step:
    """A Python program as a step."""
    return acceptance.Step("a step", limit, lambda _: [sys.executable, "-c", code], **options)


def words(*steps: acceptance.Step, total: float = 100.0) -> list[str]:
    return [outcome.word for outcome in acceptance.run_steps(steps, total, TERMINAL)]


def test_a_failing_step_is_recorded_and_the_next_is_run():
    steps = step("print('all well')"), step("raise SystemExit(3)"), step("")
    outcomes = acceptance.run_steps(steps, 100, TERMINAL)
    assert [outcome.word for outcome in outcomes] == ["passed", "failed", "passed"]
    assert outcomes[0].tail == ("all well",)


def test_without_a_needed_step_none_is_run():
    assert words(step("raise SystemExit(1)", needed=True), step(""), step("")) == ["failed", "not run", "not run"]


def is_free(path: Path) -> bool:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_step_that_takes_too_long_is_ended_with_all_that_it_started(work):
    """What it started holds a lock for as long as it lives; it is not waited for, and dies in its own time."""
    path = work / "lock"
    child = f"import fcntl, time; file = open({str(path)!r}, 'w'); fcntl.flock(file, fcntl.LOCK_EX); time.sleep(600)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert words(step(code, limit=2.0)) == ["timed out"]
    assert any(is_free(path) or time.sleep(0.1) for _ in range(600))


def test_when_the_time_is_over_the_rest_is_not_run():
    outcomes = acceptance.run_steps([step("import time; time.sleep(60)"), step("")], 1.0, TERMINAL)
    assert [outcome.word for outcome in outcomes] == ["timed out", "not run"]
    assert outcomes[1].tail == ("the time for all steps was over",)


def test_a_missing_program_fails():
    missing = acceptance.Step("a step", 10, lambda _: ["no-such-program-anywhere"])
    (outcome,) = acceptance.run_steps([missing], 100, TERMINAL)
    assert outcome.word == "failed"
    assert "No such file" in outcome.tail[0]


def test_progress_is_told(monkeypatch, capsys):
    monkeypatch.setattr(acceptance, "HEARTBEAT", 0.5)
    acceptance.run_steps([step("import time; print('half way', flush=True); time.sleep(1.5)")], 100, Terminal())
    told = capsys.readouterr().out
    assert "[1/1] a step" in told
    assert "s: half way" in told


def test_the_file_names_no_path_of_this_machine():
    code = f"print({str(ROOT / 'csrc')!r}, {str(Path.home() / 'x')!r})"
    outcomes = acceptance.run_steps([step(code)], 100, TERMINAL)
    assert outcomes[0].tail == ("./csrc ~/x",)
    text = json.dumps(acceptance.results(outcomes, "device", 1.0))
    assert str(ROOT) not in text
    assert str(Path.home()) not in text


def test_the_file_holds_the_benchmarks_and_the_steps(work):
    outcomes = acceptance.run_steps([step("")], 100, TERMINAL)
    assert acceptance.results(outcomes, "device", 1.0)["environment"] == {"device": "device"}
    (work / "benchmarks.json").write_text(json.dumps({"environment": {"device": "it"}, "cases": [{"name": "a"}]}))
    (work / "encoders.json").write_text(json.dumps({"encoder": [{"name": "b"}]}))
    content = acceptance.results(outcomes, "device", 1.0)
    assert content["environment"] == {"device": "it"}
    assert content["encoder"] == [{"name": "b"}]
    assert content["cases"] == [{"name": "a"}]
    assert content["acceptance"]["steps"][0]["word"] == "passed"


def test_steps_on_a_gpu():
    steps = {step.name: step for step in acceptance.gpu_steps("90")}
    checks = ["build", "operator tests", "grid path", "block path", "memcheck", "racecheck"]
    assert list(steps) == [*checks, "encoders", "benchmarks"]
    assert steps["build"].environment["VISIONZIP_CUDA_ARCHS"] == "90-real"
    assert steps["build"].needed
    assert steps["operator tests"].environment == {"VISIONZIP_REQUIRE_CUDA": "1"}
    assert {"python_tests/operators", "python_tests/tokens"} <= {*map(str, steps["operator tests"].command(100))}
    assert (ROOT / "python_tests" / "operators" / "test_cuda.py").exists()
    assert [*steps["racecheck"].command(50)][:3] == ["compute-sanitizer", "--kernel-name", "kns=visionzip"]
    assert [*map(str, steps["encoders"].command(50))][-4:-2] == ["--output", str(acceptance.ENCODERS)]
    assert steps["benchmarks"].command(100)[-2:] == ["--time-limit", "85"]
    assert acceptance.TOTAL_LIMIT < 9 * 60


@pytest.mark.parametrize("path", ["grid", "block"])
def test_the_tests_of_decisions_are_run_on_each_path(path):
    (step,) = (step for step in acceptance.gpu_steps("90") if step.name == f"{path} path")
    assert step.environment == {"VISIONZIP_REQUIRE_CUDA": "1", every_path.PLAN_VARIABLE: f"path={path}"}
    files = [word for word in step.command(60) if word.startswith("python_tests/")]
    assert {"python_tests/operators/test_decisions.py", "python_tests/operators/test_packed.py"} <= {*files}
    assert all((ROOT / file).exists() for file in files)


@pytest.mark.parametrize("present", [True, False])
def test_pytest_with_and_without_its_plugins(monkeypatch, present):
    monkeypatch.setattr(acceptance, "has", lambda module: present)
    command = acceptance.pytest_command()
    assert ("-n" in command) == present
    assert ("-c" in command) != present


@pytest.mark.skipif(torch.cuda.is_available(), reason="the error is for machines without a GPU")
def test_without_a_gpu(capsys):
    assert acceptance.main([]) == 2
    assert "--emulated" in capsys.readouterr().out


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
    """Everything but the GPU: all steps pass, and the file can be compared."""
    emulation.build(*acceptance.EMULATED_TARGETS)  # not in the dry run's time
    output = tmp_path / "emulated.json"
    command = [sys.executable, "-m", "tools.gpu_acceptance", "--emulated", "--output", output]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    content = json.loads(output.read_text())
    steps = content["acceptance"]["steps"]
    assert [step["step"] for step in steps] == [step.name for step in acceptance.emulated_steps()]
    assert {step["word"] for step in steps} == {"passed"}
    assert all(case["seconds"].keys() >= {"ours", "released"} for case in content["cases"])
    assert content["cases"]
