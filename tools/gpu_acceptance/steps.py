"""What is run on a machine with a GPU, and a dry run of the same without one."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.places import ROOT
from tools.gpu_acceptance.runner import Step

WRITING = 15.0  # what benchmarks need after their last case
SWEEPING = 30.0  # and the tuner after it has begun its last sweep

PYTHON = sys.executable
SANITIZER = ("compute-sanitizer", "--kernel-name", "kns=visionzip", "--error-exitcode", "9")
"""Our kernels alone: torch's would take minutes."""

PLAN = "VISIONZIP_PLAN"
OTHER_PATHS = ("grid", "block", "global")
"""Of the kernels: a GPU with clusters takes none of them by itself, the last but for the largest images."""

DECISIONS = tuple(f"python_tests/operators/test_{what}.py" for what in ("decisions", "invariance", "packed", "ties"))
"""What a path might get wrong."""

BENCHMARKS = {"zip": 0.4, "zip_qk": 0.4, "merge": 0.12, "zip_packed": 0.12}
"""By operator, so that each has its figures written: the share of a call that its cases take."""

EMULATION = ROOT / "build" / "emulation" / "results"
EMULATED_TARGETS = ("visionzip_emulated", "kernel_driver_sanitized", "kernel_driver_races")

GOES_ON = "the same command goes on"  # says the tuner


def figures(folder: Path) -> list[Path]:
    """The files with what was measured, as far as there are any: what counts last comes first."""
    return [folder / f"{name}.json" for name in ("machine", "encoders", "benchmarks", *map(_file_stem, BENCHMARKS))]


def swept(folder: Path) -> Path:
    """The tuner's file."""
    return folder / "plan.json"


def profiled(folder: Path) -> Path:
    """The table of counters."""
    return folder / "ncu.csv"


def _file_stem(op: str) -> str:
    return f"benchmarks-{op}"


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


def gpu_steps(architecture: str, folder: Path) -> list[Step]:
    """On a GPU; `architecture` such as 90. First checks, then sweeps, then measurements."""
    every_path = (PYTHON, "-m", "tools.gpu_acceptance.every_path")
    build = {"VISIONZIP_WITH_CUDA": "ON", "VISIONZIP_CUDA_ARCHS": f"{architecture}-real"}
    encoders = (PYTHON, "-m", "benchmarks.encoder", "--output", folder / "encoders.json")
    required = {"VISIONZIP_REQUIRE_CUDA": "1"}
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # a block of the allocator's would hide what runs over its end

    def tests(*files: str) -> list[str]:
        return [*pytest_command(), *files, "-k", "cuda and not emulated"]  # a file's name may have cuda in it

    def sanitized(name: str, environment: dict[str, str]) -> Step:
        command = [*SANITIZER, "--tool", name, *every_path]
        return Step(name, 0.15, lambda _: command, environment, tool=SANITIZER[0])

    def measure(op: str) -> Callable[[float], list[str | Path]]:
        command = (PYTHON, "-m", "benchmarks", "--device", "cuda", "--filter", f"{op}/")
        output = folder / f"{_file_stem(op)}.json"
        return lambda seconds: [*command, "--output", output, *_limit(seconds - WRITING)]

    sweep = (PYTHON, "-m", "benchmarks.tune", "--device", "cuda", "--output", swept(folder))
    profile = (PYTHON, "-m", "tools.gpu_acceptance.profile", "--output", profiled(folder))
    return [
        Step("build", 0.3, lambda _: [PYTHON, "setup.py", "--quiet", "build_ext", "--inplace"], build, needed=True),
        Step("machine", 0.06, lambda _: _measure_machine("cuda", folder)),
        Step("every path", 0.1, lambda _: every_path),
        Step("operator tests", 0.35, lambda _: tests("python_tests/operators", "python_tests/tokens"), required),
        *(
            Step(f"{path} path", 0.12, lambda _: tests(*DECISIONS), {**required, PLAN: f"path={path}"})
            for path in OTHER_PATHS
        ),
        sanitized("memcheck", uncached),
        sanitized("racecheck", {}),
        Step("sweep", 0.4, lambda seconds: [*sweep, *_limit(seconds - SWEEPING)], unfinished=GOES_ON),
        Step("profile", 0.2, lambda _: profile, tool="ncu"),
        Step("encoders", 0.15, lambda _: [*encoders, "--device", "cuda"]),
        *(Step(f"benchmarks {op}", share, measure(op)) for op, share in BENCHMARKS.items()),
    ]


def emulated_steps(folder: Path) -> list[Step]:
    """The same without a GPU: few tests, the emulation's AddressSanitizer and race checker, tiny measurements.

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
    quick = (PYTHON, "-m", "benchmarks", "--quick", "--output", folder / "benchmarks.json")
    sweep = (PYTHON, "-m", "benchmarks.tune", "--device", "cuda", "--dry-run")
    every_path = (PYTHON, "-m", "tools.gpu_acceptance.every_path", "--emulated", library)
    profile = (PYTHON, "-m", "tools.gpu_acceptance.profile", "--cases", "tiny")
    return [
        Step("build", 0.75, lambda _: build, {"PYTHONPATH": str(ROOT / "python_tests")}, needed=True),
        Step("machine", 0.2, lambda _: [*_measure_machine("cpu", folder), "--emulated", library]),
        Step("every path", 0.25, lambda _: every_path),
        Step("operator tests", 0.25, lambda _: suite),
        *(Step(f"{path} path", 0.25, lambda _: decisions, {PLAN: f"path={path}"}) for path in OTHER_PATHS),
        Step("memcheck", 0.25, lambda _: [EMULATION / "kernel_driver_sanitized", "merge"]),
        Step("racecheck", 0.25, lambda _: [EMULATION / "kernel_driver_races", "merge"]),
        Step("sweep", 0.2, lambda _: sweep, unfinished=GOES_ON),
        Step("profile", 0.2, lambda _: profile),
        Step("benchmarks", 0.25, lambda seconds: [*quick, *_limit(seconds - WRITING)]),
    ]


def _measure_machine(device: str, folder: Path) -> list[str | Path]:
    return [PYTHON, "-m", "tools.gpu_acceptance.machine", "--device", device, "--output", folder / "machine.json"]


def _limit(seconds: float) -> list[str]:
    return ["--time-limit", f"{max(0.0, seconds):.0f}"]
