"""Builds what executes the CUDA kernels on the host, where it is not up to date."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from visionzip_ext import _C

ROOT = Path(__file__).resolve().parents[2]
_BUILD = ROOT / "build" / "emulation"
RESULTS = _BUILD / "results"
"""Where the targets lie."""

PROJECT = ROOT / "tools" / "cuda_emulation"
"""The emulation, a CMake project of its own."""

MISSING_REASON = "" if _C.build_info()["cuda"] else "the emulation needs CUDA's headers, and this build found no nvcc"
"""Why nothing can be built; empty if it can."""

SEED_VARIABLE = "CUDA_EMULATION_SEED"
ARCHITECTURE_VARIABLE = "CUDA_EMULATION_ARCH"
MULTIPROCESSORS_VARIABLE = "CUDA_EMULATION_SMS"


def execute(*command: str | Path) -> None:
    """Run a program, this environment's own first; its output is the error's words where it fails."""
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


def _configure(source: Path, build: Path, *definitions: str) -> None:
    places = (f"-DCMAKE_{kind}_OUTPUT_DIRECTORY={RESULTS}" for kind in ("LIBRARY", "RUNTIME"))
    execute("cmake", "-S", source, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", *places, *definitions)


def _build(build: Path, targets: Iterable[str]) -> None:
    execute("cmake", "--build", build, *(word for target in targets for word in ("--target", target)))


@contextlib.contextmanager
def lock(build: Path) -> Iterator[None]:
    """Other processes that build there wait meanwhile."""
    build.mkdir(parents=True, exist_ok=True)
    with (build / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@functools.cache
def _configure_all() -> None:
    # The architectures are nvcc's, which is not run.
    _configure(ROOT, _BUILD, f"-DPython_EXECUTABLE={sys.executable}", "-DVISIONZIP_CUDA_ARCHS=90")


@functools.cache
def build(*targets: str) -> None:
    """Build targets; the results are in RESULTS."""
    with lock(_BUILD):
        _configure_all()
        _build(_BUILD, targets)


@functools.cache
def build_self_tests() -> None:
    """Build the emulation by itself, with its own tests, as another project would have it; the results are in RESULTS.

    The headers are those that the project's own build has found.
    """
    with lock(_BUILD):
        _configure_all()
        found = re.search(r"^(CUDA_EMULATION_TOOLKIT_INCLUDE):\w+=(.*)$", (_BUILD / "CMakeCache.txt").read_text(), re.M)
        assert found is not None
        alone = _BUILD / "alone"
        _configure(PROJECT, alone, f"-D{found[1]}={found[2]}")
        _build(alone, ["all"])
