"""What is installed, what was built, and what runs here: ``python -m visionzip_ext info``."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import re
from typing import Any

import torch

from visionzip_ext import _C, _library


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--json", action="store_true", help="print plain JSON")


def run(args: argparse.Namespace) -> int:
    """Print everything; return the exit status."""
    facts = collect()
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        _print_table(facts)
    return 0


def collect() -> dict[str, Any]:
    """Return all facts, ready for JSON."""
    build = _C.build_info()
    return {
        "version": build["version"],
        "package": str(_library.PACKAGE),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": {"version": torch.__version__, "cuda": torch.version.cuda},
        "transformers": _installed_version("transformers"),
        "cpu": {
            "library": _library.CPU_LIBRARY.name,
            "built": True,  # the package cannot be imported without it
            "loaded": True,
            "instruction_set": _C.cpu_isa(),
            "threads": torch.get_num_threads(),
        },
        "cuda": {
            "library": _library.CUDA_LIBRARY.name,
            "built": _library.CUDA_LIBRARY.exists(),
            "loaded": _library.cuda_library_loaded,
            "reason": _why_no_cuda_library(build),
            "devices": _devices(build["cuda_architectures"]),
        },
        "build": build,
    }


def runs_on(architectures: list[str], capability: tuple[int, int]) -> bool:
    """Whether code built for these architectures, in CMake's notation, runs on a GPU of this compute capability."""
    device = 10 * capability[0] + capability[1]
    for architecture in architectures:
        ((number, suffix, kind),) = re.findall(r"^(\d+)([af]?)(-real|-virtual)?$", architecture)
        built = int(number)
        if suffix == "a":  # one GPU's own instructions
            fits = device == built
        elif suffix == "f" or kind == "-real":  # machine code: this major version, from this minor version on
            fits = built // 10 == capability[0] and device >= built
        else:  # PTX, compiled when it is loaded: every later GPU
            fits = device >= built
        if fits:
            return True
    return False


def _installed_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _why_no_cuda_library(build: dict[str, Any]) -> str | None:
    """Say why the CUDA library is not loaded; None if it is."""
    if _library.cuda_library_loaded:
        return None
    if not build["cuda"]:
        return f"not built: {build['cuda_missing_reason']}"
    if not _library.CUDA_LIBRARY.exists():
        return f"built, but missing from {_library.PACKAGE}"
    if torch.version.cuda is None:
        return "built, not loaded: this torch has no CUDA"
    return f"built, but cannot be loaded: {_library.cuda_library_error}"


def _devices(architectures: list[str]) -> list[dict[str, Any]]:
    """Return the GPUs that torch sees, and whether the CUDA library was built for them."""
    devices = []
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        devices.append(
            {
                "index": index,
                "name": torch.cuda.get_device_name(index),
                "capability": "{}.{}".format(*capability),
                "supported": runs_on(architectures, capability),
            }
        )
    return devices


def _print_table(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")

    def row(name: str, value: object) -> None:
        # As text: paths and versions are not markup.
        table.add_row(name, Text(str(value)))

    build, cpu, cuda, torch_facts = facts["build"], facts["cpu"], facts["cuda"], facts["torch"]
    row("visionzip_ext", f"{facts['version']} ({build['git_revision']}), {facts['package']}")
    row("Python", f"{facts['python']}, {facts['platform']}")
    row("torch", f"{torch_facts['version']}, CUDA {torch_facts['cuda'] or 'none'}")
    row("transformers", facts["transformers"] or "not installed")
    table.add_row()
    row("CPU library", f"{cpu['library']}: built, loaded")
    row("instruction set", f"{cpu['instruction_set']} (built: {', '.join(build['instruction_sets'])})")
    row("threads", cpu["threads"])
    table.add_row()
    row("CUDA library", f"{cuda['library']}: {'built, loaded' if cuda['loaded'] else cuda['reason']}")
    if build["cuda"]:
        row("architectures", ", ".join(build["cuda_architectures"]))
    for device in cuda["devices"]:
        supported = "supported" if device["supported"] else "not among the architectures built for"
        row(f"GPU {device['index']}", f"{device['name']}, compute capability {device['capability']}: {supported}")
    if not cuda["devices"]:
        row("GPUs", "none visible to torch")
    table.add_row()
    row("built by", f"{build['compiler']}, {build['build_type']}" + (f", nvcc {build['cuda_version']}" * build["cuda"]))
    row("built against", f"torch {build['torch_version']}; runs with torch {build['torch_target']} and later")
    Console(highlight=False).print(table)
