"""On a machine that is there to test CUDA, nothing passes by being skipped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import require_cuda
from support.backends import BACKENDS, CUDA

ROOT = Path(__file__).resolve().parents[2]


def skipped(nodeid: str) -> pytest.TestReport:
    reason = ("file.py", 3, "Skipped: no kernel")
    return pytest.TestReport(nodeid, ("file.py", 3, nodeid), {}, "skipped", reason, "call")


@pytest.mark.parametrize(
    ("value", "nodeid", "outcome"),
    [
        ("1", "test_ops.py::test_it[cuda-zip]", "failed"),
        ("1", "test_ops.py::test_it[zip-cuda-1.5]", "failed"),
        ("1", "test_ops.py::test_it[zip-cuda]", "failed"),
        ("1", "test_ops.py::TestThem::test_it[cuda]", "failed"),
        ("1", "test_ops.py::test_it[emulated-zip]", "skipped"),
        ("1", "test_ops_cuda.py::test_cuda[cpu-not_cuda-cudart]", "skipped"),
        ("1", "test_benchmarks_cuda.py::test_without_a_gpu", "skipped"),
        ("0", "test_ops.py::test_it[cuda-zip]", "skipped"),
    ],
)
def test_a_skip(monkeypatch, value, nodeid, outcome):
    monkeypatch.setenv(require_cuda.VARIABLE, value)
    report = skipped(nodeid)
    require_cuda.fail_if_skipped(report)
    assert report.outcome == outcome
    assert outcome == "skipped" or report.longrepr.endswith("was skipped: Skipped: no kernel")


def test_an_expected_failure_stays_one(monkeypatch):
    monkeypatch.setenv(require_cuda.VARIABLE, "1")
    report = skipped("test_ops.py::test_it[cuda-zip]")
    report.wasxfail = "reason"
    require_cuda.fail_if_skipped(report)
    assert report.outcome == "skipped"


@pytest.mark.skipif(CUDA in BACKENDS, reason="the error is for machines without a GPU")
def test_a_machine_without_a_gpu_tests_nothing():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "python_tests/kernels/test_plan.py"],
        cwd=ROOT,
        env={**os.environ, require_cuda.VARIABLE: "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "VISIONZIP_REQUIRE_CUDA is set, but torch sees no GPU" in done.stdout + done.stderr
