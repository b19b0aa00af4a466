"""What became of the steps, kept from call to call: a line of JSON a step, under one that says what was run where."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.places import ROOT

PUT_OFF = "put off"
FINISHED = ("passed", "failed", "timed out", "skipped")
FILE = "state.jsonl"

SOURCES = ("benchmarks", "csrc", "cmake", "python_tests", "tools", "visionzip_ext")
SUFFIXES = {".cmake", ".cpp", ".cu", ".cuh", ".h", ".py", ".txt"}


@dataclass(frozen=True)
class Outcome:
    """What became of a step."""

    step: str
    word: str
    """passed, failed, timed out or skipped; put off or not run: the next call runs it"""
    seconds: float = 0.0
    tail: tuple[str, ...] = ()
    """The last lines that it printed, where it did not pass the last alone; or why it was not run."""


class State:
    """The outcomes so far, in `folder`; without any where the file there is of another header."""

    def __init__(self, folder: Path, header: dict[str, Any], again: bool = False) -> None:
        """Begin anew, too, where that is asked for."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.outcomes: dict[str, Outcome] = {}
        lines = [] if again else list(_whole_lines(folder / FILE))
        self.is_new = not lines or lines[0] != header
        if not self.is_new:
            self.outcomes = {line["step"]: Outcome(**{**line, "tail": tuple(line["tail"])}) for line in lines[1:]}
        whole = folder / f"{FILE}.part"
        whole.write_text("".join(json.dumps(line) + "\n" for line in (header, *map(asdict, self.outcomes.values()))))
        os.replace(whole, folder / FILE)

    def add(self, outcome: Outcome) -> None:
        """Written before the next step begins, so that a call may be cut off at any time."""
        self.outcomes[outcome.step] = outcome
        with (self.folder / FILE).open("a") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")

    def has_finished(self, step: str) -> bool:
        """Whether no later call has to run it."""
        return step in self.outcomes and self.outcomes[step].word in FINISHED

    def was_put_off(self, step: str) -> bool:
        """Whether an earlier call had no time for it."""
        return step in self.outcomes and self.outcomes[step].word == PUT_OFF


def _whole_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Those that were not cut off while they were written."""
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def header(device: str) -> dict[str, Any]:
    """The git revision (None without git), a digest of the sources, which may differ from it, and the GPU."""
    try:
        asked = subprocess.run(("git", "rev-parse", "HEAD"), cwd=ROOT, capture_output=True, text=True, check=True)
        revision = asked.stdout.strip()[:12]
    except (OSError, subprocess.CalledProcessError):
        revision = None
    files = (file for folder in SOURCES for file in (ROOT / folder).rglob("*") if file.suffix in SUFFIXES)
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return {"revision": revision, "sources": digest.hexdigest()[:12], "device": device}
