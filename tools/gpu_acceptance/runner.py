"""Runs steps within a call's seconds: each has a share of them, and what does not fit is left to the next call."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.places import ROOT, slug
from benchmarks.terminal import Terminal
from tools.gpu_acceptance.state import PUT_OFF, Outcome, State

HEARTBEAT = 20.0
PATIENCE = 5.0  # between asking a program to end and ending it
TAIL_LINES = 12
REFUSALS = ("Device not supported", "ERR_NVGPUCTRPERM")
"""Of NVIDIA's tools, on machines that do not let them work: the second is that counters are for administrators."""


@dataclass(frozen=True)
class Step:
    """A program that has to end with 0 in time."""

    name: str
    share: float
    """Of the call's seconds, what it takes at most; it is begun where so much is left."""
    command: Callable[[float], Sequence[str | Path]]
    """What is run, given the seconds that it has."""
    environment: Mapping[str, str] = field(default_factory=dict)
    needed: bool = False
    """Without it no other step can be run. It comes first in every call, as the machine may be another of the kind."""
    tool: str = ""
    """A program that it needs and that a machine may lack, or may not let work: it is skipped there."""
    unfinished: str = ""
    """What it prints where the same command would go on: the next call does."""


def left(steps: Sequence[Step], state: State) -> list[Step]:
    """What a call has to run, in this order: what is needed, what was put off, the rest; nothing if all is finished."""
    missing = [step for step in steps if not state.has_finished(step.name)]
    needed = [step for step in steps if step.needed]
    others = [step for step in missing if not step.needed]
    return [*needed, *sorted(others, key=lambda step: not state.was_put_off(step.name))] if missing else []


def run_steps(steps: Sequence[Step], total: float, state: State, terminal: Terminal) -> Iterator[Outcome]:
    """Run what is left, for `total` seconds at most; each outcome is in the state when it is yielded."""
    end_of_time = time.monotonic() + total
    todo = left(steps, state)
    why_not = ""
    for number, step in enumerate(todo, 1):
        limit, remaining = step.share * total, max(0.0, end_of_time - time.monotonic())
        terminal.say(f"[{number}/{len(todo)}] {step.name} (at most {limit:.0f} s)")
        if why_not:
            outcome = Outcome(step.name, "not run", 0.0, (why_not,))
        elif limit > remaining:
            outcome = Outcome(step.name, PUT_OFF, 0.0, (f"it has {limit:.0f} s, {remaining:.0f} were left",))
        else:
            outcome = run_step(step, limit, state.folder, terminal)
        state.add(outcome)
        _tell(outcome, terminal)
        if step.needed and outcome.word != "passed":
            why_not = why_not or f"{step.name}: {outcome.word}"
        yield outcome


def run_step(step: Step, seconds: float, folder: Path, terminal: Terminal) -> Outcome:
    """Run a step for at most so many seconds, telling now and then what it is at."""
    if step.tool and not shutil.which(step.tool):
        return Outcome(step.name, "skipped", 0.0, (f"{step.tool} is not installed",))
    log = folder / f"{slug(step.name)}.log"
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
    word, tail = _judge(step, status, log)
    return Outcome(step.name, word, round(time.monotonic() - start, 1), tail)


def _judge(step: Step, status: int | None, log: Path) -> tuple[str, tuple[str, ...]]:
    """A word and the lines that explain it, by the exit status (None: it was ended) and what was printed."""
    lines = printed(log)
    refusals = [line for line in lines if any(refusal in line for refusal in REFUSALS)]
    if step.tool and refusals:
        return "skipped", tuple(refusals[:1])
    if status == 0 and step.unfinished and any(step.unfinished in line for line in lines):
        return PUT_OFF, lines[-1:]
    word = {0: "passed", None: "timed out"}.get(status, "failed")
    return word, lines[-(1 if status == 0 else TAIL_LINES) :]


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


def printed(log: Path) -> tuple[str, ...]:
    """What a step printed, without empty lines and this machine's paths."""
    lines = [line.rstrip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return tuple(line.replace(str(ROOT), ".").replace(str(Path.home()), "~") for line in lines)


def _wait(process: subprocess.Popen, start: float, limit: float, log: Path, terminal: Terminal) -> int | None:
    """The program's exit status; None if it is not over in time."""
    while (remaining := start + limit - time.monotonic()) > 0:
        try:
            return process.wait(min(HEARTBEAT, remaining))
        except subprocess.TimeoutExpired:
            told = " ".join(printed(log)[-1:])
            terminal.say(f"      {time.monotonic() - start:.0f} s: {told[:100]}")
    return None


def _tell(outcome: Outcome, terminal: Terminal) -> None:
    style = {"passed": "green", "skipped": "yellow", PUT_OFF: "yellow"}.get(outcome.word, "red")
    terminal.say(f"      {outcome.word}, {outcome.seconds:.1f} s", style=style)
    for line in outcome.tail:
        terminal.say(f"      {line}")
