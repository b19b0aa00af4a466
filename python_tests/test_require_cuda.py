"""On a machine that is there to test CUDA, nothing passes by being skipped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import require_cuda
from backends import BACKENDS, CUDA

ROOT = Path(__file__).resolve().parents[1]


def skipped(name: str) -> pytest.TestReport:
    reason = ("file.py", 3, "Skipped: no kernel")
    return pytest.TestReport(f"test_ops.py::test_it[{name}]", ("file.py", 3, name), {}, "skipped", reason, "call")


@pytest.mark.parametrize(
    ("value", "name", "outcome"),
    [("1", "cuda-zip", "failed"), ("1", "emulated-zip", "skipped"), ("0", "cuda-zip", "skipped")],
)
def test_a_skip(monkeypatch, value, name, outcome):
    monkeypatch.setenv(require_cuda.VARIABLE, value)
    report = skipped(name)
    require_cuda.fail_if_skipped(report)
    assert report.outcome == outcome
    assert outcome == "skipped" or report.longrepr.endswith("was skipped: Skipped: no kernel")


def test_an_expected_failure_stays_one(monkeypatch):
    monkeypatch.setenv(require_cuda.VARIABLE, "1")
    report = skipped("cuda-zip")
    report.wasxfail = "reason"
    require_cuda.fail_if_skipped(report)
    assert report.outcome == "skipped"


@pytest.mark.skipif(CUDA in BACKENDS, reason="the error is for machines without a GPU")
def test_a_machine_without_a_gpu_tests_nothing():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "python_tests/test_plan.py"],
        cwd=ROOT,
        env={**os.environ, require_cuda.VARIABLE: "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "VISIONZIP_REQUIRE_CUDA is set, but torch sees no GPU" in done.stdout + done.stderr
