"""A whole run on one path of the CUDA kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import emulation, forced_path

ROOT = Path(__file__).resolve().parents[2]
NO_ROOM = "VISIONZIP_PLAN=path=block cannot be taken for S = 1500 on a GPU of compute capability 90"


def test_no_room_is_expected(monkeypatch):
    monkeypatch.setattr(forced_path, "PLAN", "path=block")
    with pytest.raises(pytest.xfail.Exception, match=f"^{NO_ROOM}$"):
        forced_path.expect_no_room(ValueError(f"{NO_ROOM}\nand where"))


@pytest.mark.parametrize(("plan", "words"), [("path=grid", NO_ROOM), (None, NO_ROOM), ("path=block", "tokens differ")])
def test_nothing_else_is(monkeypatch, plan, words):
    monkeypatch.setattr(forced_path, "PLAN", plan)
    forced_path.expect_no_room(ValueError(words))


@pytest.mark.skipif(bool(emulation.MISSING_REASON), reason=emulation.MISSING_REASON)
def test_a_run():
    """One of these images fits into a block."""
    some = "emulated and every_shape and zip_qk and float32 and (S1500 or C17)"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "python_tests/operators/test_decisions.py",
            "-k",
            some,
        ],
        cwd=ROOT,
        env={**os.environ, "VISIONZIP_PLAN": "path=block"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    assert "1 xfailed" in done.stdout
    assert NO_ROOM in done.stdout
