"""VISIONZIP_REQUIRE_CUDA=1: on a machine that is there to test CUDA, a test of it that is skipped has failed."""

from __future__ import annotations

import os
import re

import pytest
from support.backends import BACKENDS, CUDA

VARIABLE = "VISIONZIP_REQUIRE_CUDA"


def is_required() -> bool:
    """Whether the variable is set."""
    return os.environ.get(VARIABLE, "0") not in ("", "0")


def check() -> None:
    """Ends the run where the tests would not even be collected."""
    if is_required() and CUDA not in BACKENDS:
        raise pytest.UsageError(f"{VARIABLE} is set, but torch sees no GPU or the CUDA library is not loaded")


def ran_on_cuda(nodeid: str) -> bool:
    """Whether cuda is among a test's parameters; in a file's or a function's name it tells nothing."""
    return re.search(rf"\[(.*-)?{CUDA}(-.*)?\]$", nodeid) is not None


def fail_if_skipped(report: pytest.TestReport) -> None:
    """Turns the skip of a test on the backend cuda into a failure; an expected failure stays one."""
    if is_required() and report.skipped and ran_on_cuda(report.nodeid) and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{VARIABLE} is set, and this test was skipped: {reason}"
