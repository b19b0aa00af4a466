"""`python -m tools.gpu_acceptance`: on a machine with a GPU, all that only such a machine can do, in nine minutes.

Builds for the GPU that is there, runs the operator tests on it, those of decisions also on the paths that a GPU with
clusters does not choose, and every operator under compute-sanitizer, then whole encoders and the benchmarks; writes
benchmarks/results/<gpu>.json, which holds each step's outcome too. No network is needed. A step that fails or takes too
long is recorded, and the exit status is 1. Where time is short, figures go missing before checks do: the benchmarks,
last, begin no case that would end too late. With --emulated, a dry run for machines without a GPU: tiny sizes, and the
emulated kernels in its place.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import plot
from benchmarks.places import RESULTS, ROOT, slug
from benchmarks.terminal import Terminal

TOTAL_LIMIT = 530.0  # seconds
WORK = ROOT / "build" / "gpu_acceptance"
MEASURED = WORK / "benchmarks.json"
ENCODERS = WORK / "encoders.json"
HEARTBEAT = 20.0
PATIENCE = 5.0  # between asking a program to end and ending it
TAIL_LINES = 12
WRITING = 15.0  # what the benchmarks need after their last case

PYTHON = sys.executable
SANITIZER = ("compute-sanitizer", "--kernel-name", "kns=visionzip", "--error-exitcode", "9")
"""Our kernels alone: torch's would take minutes."""

PLAN = "VISIONZIP_PLAN"
OTHER_PATHS = ("grid", "block")
"""Of the kernels: a GPU with clusters takes neither by itself."""

DECISIONS = tuple(f"python_tests/operators/test_{what}.py" for what in ("decisions", "invariance", "packed", "ties"))
"""What a path might get wrong."""

EMULATION = ROOT / "build" / "emulation" / "results"
EMULATED_TARGETS = ("visionzip_emulated", "kernel_driver_sanitized", "kernel_driver_races")


@dataclass(frozen=True)
class Step:
    """A program that has to end with 0 in time."""

    name: str
    limit: float
    command: Callable[[float], Sequence[str | Path]]
    """What is run, given the seconds that it has."""
    environment: Mapping[str, str] = field(default_factory=dict)
    needed: bool = False
    """Without it no later step can be run."""


@dataclass(frozen=True)
class Outcome:
    """What became of a step."""

    step: str
    word: str
    """passed, failed, timed out or not run"""
    seconds: float = 0.0
    tail: tuple[str, ...] = ()
    """The last lines that it printed, where it did not pass the last alone."""


def has(module: str) -> bool:
    """Whether a Python module is installed."""
    return importlib.util.find_spec(module) is not None


def pytest_command() -> list[str]:
    """pytest, on several processes if it can, and without the project's options where it lacks what they need."""
    options = ["-q", "-p", "no:cacheprovider"]
    if has("xdist"):
        options += ["-n", str(min(8, os.cpu_count() or 1))]
    if not has("pytest_timeout"):
        options += ["-c", os.devnull, "--rootdir", str(ROOT)]
    return [PYTHON, "-m", "pytest", *options]


def gpu_steps(architecture: str) -> list[Step]:
    """On a GPU; `architecture` such as 90."""
    every_path = (PYTHON, "-m", "tools.gpu_acceptance.every_path")
    build = {"VISIONZIP_WITH_CUDA": "ON", "VISIONZIP_CUDA_ARCHS": f"{architecture}-real"}
    encoders = (PYTHON, "-m", "benchmarks.encoder", "--output", ENCODERS)
    required = {"VISIONZIP_REQUIRE_CUDA": "1"}
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # a block of the allocator's would hide what runs over its end

    def tests(*files: str) -> list[str]:
        return [*pytest_command(), *files, "-k", "cuda and not emulated"]  # a file's name may have cuda in it

    def measure(seconds: float) -> list[str | Path]:
        limit = ["--time-limit", f"{max(0.0, seconds - WRITING):.0f}"]
        return [PYTHON, "-m", "benchmarks", "--device", "cuda", "--output", MEASURED, *limit]

    return [
        Step("build", 150, lambda _: [PYTHON, "setup.py", "--quiet", "build_ext", "--inplace"], build, needed=True),
        Step("operator tests", 180, lambda _: tests("python_tests/operators", "python_tests/tokens"), required),
        *(
            Step(f"{path} path", 60, lambda _: tests(*DECISIONS), {**required, PLAN: f"path={path}"})
            for path in OTHER_PATHS
        ),
        Step("memcheck", 60, lambda _: [*SANITIZER, "--tool", "memcheck", *every_path], uncached),
        Step("racecheck", 60, lambda _: [*SANITIZER, "--tool", "racecheck", *every_path]),
        Step("encoders", 60, lambda _: [*encoders, "--device", "cuda"]),
        Step("benchmarks", 300, measure),
    ]


def emulated_steps() -> list[Step]:
    """The same without a GPU: few tests, the emulation's AddressSanitizer and race checker, tiny benchmarks.

    No encoders, which run nothing that is emulated.
    """
    targets = ", ".join(map(repr, EMULATED_TARGETS))
    build = (PYTHON, "-c", f"from support import emulation; emulation.build({targets})")
    pytest = (PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    suite = (
        *pytest,
        "python_tests/operators/test_merge.py",
        "-k",
        "emulated and (identity or backward_is_the_adjoint)",
    )
    decisions = (*pytest, *DECISIONS, "-k", "emulated and (deciding_alone or group_of_one)")
    library = EMULATION / "libvisionzip_emulated.so"
    quick = ("-m", "benchmarks", "--quick", "--output", MEASURED)
    return [
        Step("build", 400, lambda _: build, {"PYTHONPATH": str(ROOT / "python_tests")}, needed=True),
        Step("operator tests", 150, lambda _: suite),
        *(Step(f"{path} path", 150, lambda _: decisions, {PLAN: f"path={path}"}) for path in OTHER_PATHS),
        Step("every path", 150, lambda _: [PYTHON, "-m", "tools.gpu_acceptance.every_path", "--emulated", library]),
        Step("memcheck", 150, lambda _: [EMULATION / "kernel_driver_sanitized", "merge"]),
        Step("racecheck", 150, lambda _: [EMULATION / "kernel_driver_races", "merge"]),
        Step("benchmarks", 150, lambda seconds: [PYTHON, *quick, "--time-limit", f"{seconds:.0f}"]),
    ]


def end(process: subprocess.Popen) -> None:
    """A program and those that it started."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            break
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            continue


def last_lines(log: Path, count: int) -> tuple[str, ...]:
    """Of what a step printed, without this machine's paths."""
    lines = [line.rstrip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return tuple(line.replace(str(ROOT), ".").replace(str(Path.home()), "~") for line in lines[-count:])


def run_step(step: Step, seconds: float, terminal: Terminal) -> Outcome:
    """Run a step for at most so many seconds, telling now and then what it is at."""
    log = WORK / f"{slug(step.name)}.log"
    start = time.monotonic()
    with log.open("w") as output:
        try:
            process = subprocess.Popen(
                step.command(seconds),
                cwd=ROOT,
                env={**os.environ, **step.environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return Outcome(step.name, "failed", 0.0, (f"{error.filename}: {error.strerror}",))
        try:
            status = _wait(process, start, seconds, log, terminal)
        finally:
            end(process)
    word = {0: "passed", None: "timed out"}.get(status, "failed")
    tail = last_lines(log, 1 if status == 0 else TAIL_LINES)
    return Outcome(step.name, word, round(time.monotonic() - start, 1), tail)


def _wait(process: subprocess.Popen, start: float, limit: float, log: Path, terminal: Terminal) -> int | None:
    """The program's exit status; None if it is not over in time."""
    while (left := start + limit - time.monotonic()) > 0:
        try:
            return process.wait(min(HEARTBEAT, left))
        except subprocess.TimeoutExpired:
            told = " ".join(last_lines(log, 1))
            terminal.say(f"      {time.monotonic() - start:.0f} s: {told[:100]}")
    return None


def run_steps(steps: Sequence[Step], total: float, terminal: Terminal) -> list[Outcome]:
    """All steps; those that cannot be run any more are recorded as such."""
    end_of_time = time.monotonic() + total
    outcomes: list[Outcome] = []
    why_not = ""
    for number, step in enumerate(steps, 1):
        seconds = min(step.limit, end_of_time - time.monotonic())
        if not why_not and seconds <= 0:
            why_not = "the time for all steps was over"
        terminal.say(f"[{number}/{len(steps)}] {step.name}" + ("" if why_not else f" (at most {seconds:.0f} s)"))
        outcome = Outcome(step.name, "not run", 0.0, (why_not,)) if why_not else run_step(step, seconds, terminal)
        outcomes.append(outcome)
        _tell(outcome, terminal)
        if step.needed and outcome.word != "passed":
            why_not = why_not or f"{step.name}: {outcome.word}"
    return outcomes


def _tell(outcome: Outcome, terminal: Terminal) -> None:
    passed = outcome.word == "passed"
    terminal.say(f"      {outcome.word}, {outcome.seconds:.1f} s", style="green" if passed else "red")
    for line in outcome.tail:
        terminal.say(f"      {line}")


def results(outcomes: Sequence[Outcome], device: str, seconds: float) -> dict[str, Any]:
    """The file's content: that of the benchmarks and encoders, if they wrote any, and what became of each step."""
    measured = {"environment": {"device": device}, "cases": []}
    for file in (MEASURED, ENCODERS):
        measured |= json.loads(file.read_text()) if file.exists() else {}
    steps = [asdict(outcome) for outcome in outcomes]
    return {**measured, "acceptance": {"seconds": round(seconds, 1), "steps": steps}}


def gpu() -> tuple[str, str] | None:
    """The GPU's name and its architecture (90 for 9.0); None where torch sees none."""
    import torch  # takes seconds, which a dry run need not wait for

    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name(), "{}{}".format(*torch.cuda.get_device_capability())


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0 if every step passed, 2 where there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_acceptance", description=__doc__.splitlines()[0])
    parser.add_argument("--emulated", action="store_true", help="a dry run without a GPU")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: benchmarks/results/<gpu>.json")
    parser.add_argument("--time-limit", type=float, default=TOTAL_LIMIT, metavar="S", help="default: %(default)g")
    options = parser.parse_args(arguments)
    terminal = Terminal()
    found = ("emulated", "") if options.emulated else gpu()
    if found is None:
        terminal.say("torch sees no GPU; --emulated makes a dry run without one", style="red")
        return 2
    device, architecture = found
    folder = WORK if options.emulated else RESULTS
    output = options.output or folder / f"{slug(device)}.json"

    start = time.monotonic()
    WORK.mkdir(parents=True, exist_ok=True)
    for file in (MEASURED, ENCODERS):
        file.unlink(missing_ok=True)
    steps = emulated_steps() if options.emulated else gpu_steps(architecture)
    outcomes = run_steps(steps, options.time_limit, terminal)
    content = results(outcomes, device, time.monotonic() - start)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(content, indent=1) + "\n")
    terminal.say(plot.draw(content, output.with_suffix(".png")))
    passed = sum(outcome.word == "passed" for outcome in outcomes)
    terminal.say(f"{passed} of {len(outcomes)} steps passed in {time.monotonic() - start:.0f} s; written to {output}")
    return 0 if passed == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
