"""Builds and tests a copy of the sources with each planted fault."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.mutants.faults import Fault

ROOT = Path(__file__).resolve().parents[2]
_NOT_SOURCES = shutil.ignore_patterns(".*", "build", "dist", "*.so", "*.egg-info", "__pycache__")


def survivors(faults: Sequence[Fault], folder: Path) -> list[Fault]:
    """The faults that no test sees; `folder`: an empty one, for the copy."""
    source = folder / "visionzip_ext"
    shutil.copytree(ROOT, source, ignore=_NOT_SOURCES)
    _build(source)
    for tests in sorted({fault.tests for fault in faults}):
        if not _pass(source, tests):
            raise SystemExit(f"without any fault, tests fail: {' '.join(tests)}")
    return [fault for fault in faults if _survives(fault, source)]


def _survives(fault: Fault, source: Path) -> bool:
    file = source / fault.file
    whole = file.read_text()
    file.write_text(whole.replace(fault.old, fault.new))
    try:
        _build(source)
        survives = _pass(source, fault.tests)
    finally:
        file.write_text(whole)
    print(f"{'SURVIVED' if survives else 'seen':8}  {fault.name}", flush=True)
    return survives


def _build(source: Path) -> None:
    options = {"VISIONZIP_WITH_CUDA": "OFF", "VISIONZIP_WERROR": "OFF"}
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    subprocess.run(command, cwd=source, env={**os.environ, **options}, check=True, stdout=subprocess.DEVNULL)


def _pass(source: Path, tests: Sequence[str]) -> bool:
    # An installed visionzip_ext must not be tested in the copy's place.
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "not emulated", *tests]
    result = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
    if result.returncode > 1:  # neither passed nor failed
        raise SystemExit(result.stdout + result.stderr)
    return result.returncode == 0
