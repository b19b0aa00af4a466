"""Builds what executes the CUDA kernels on the host (python_tests/kernels), where it is not up to date."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from visionzip_ext import _C

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "emulation" / "results"
"""Where the targets lie."""

MISSING_REASON = "" if _C.build_info()["cuda"] else "the emulation needs CUDA's headers, and this build found no nvcc"
"""Why nothing can be built; empty if it can."""

_BUILD = ROOT / "build" / "emulation"

SEED_VARIABLE = "CUDA_EMULATION_SEED"
MULTIPROCESSORS_VARIABLE = "CUDA_EMULATION_SMS"


def _run(*command: str | Path) -> None:
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    program = shutil.which(command[0], path=path)
    assert program is not None, f"{command[0]} is not installed"
    result = subprocess.run(
        [program, *command[1:]],
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout}"


@functools.cache
def _configure() -> None:
    # The architectures are nvcc's, which is not run.
    definitions = [
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={RESULTS}",
        f"-DCMAKE_RUNTIME_OUTPUT_DIRECTORY={RESULTS}",
        f"-DPython_EXECUTABLE={sys.executable}",
        "-DVISIONZIP_CUDA_ARCHS=90",
    ]
    _run("cmake", "-S", ROOT, "-B", _BUILD, "-G", "Ninja", *definitions)


@functools.cache
def build(*targets: str) -> None:
    """Build targets; the results are in RESULTS.  Other processes wait meanwhile."""
    _BUILD.mkdir(parents=True, exist_ok=True)
    with (_BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _configure()
        _run("cmake", "--build", _BUILD, *(word for target in targets for word in ("--target", target)))
