"""``python -m tools.performance_model``: what each case of the benchmarks should take, beside what was measured.

Every figure of a time is modelled, by the plan that the planner makes, the machine code that was built, and published
latencies and bandwidths (``--constants`` lists them); only the columns called so are measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.cases import cuda_cases
from benchmarks.places import RESULTS, slug
from tools.kernel_report.library import Kernel, MissingTool, read
from tools.performance_model.machines import HOPPER, MACHINES, PROCESSING_CLUSTERS, Machine
from tools.performance_model.model import Work, describe_plan
from visionzip_ext._library import CUDA_LIBRARY

ARCHITECTURE = "90"
WIDTH = 205  # columns, in a file or a pipe
OURS = ("ours-graph", "ours")  # the first that was measured, as the benchmarks count
CAPTION = (
    "Microseconds, all modelled unless the column says measured: a floor of launches, memory, exchanges between blocks "
    "and column sums, without the fused kernel's own arithmetic. Plan: the path, blocks of a team x threads of each. "
    "Code: instructions of the kernels, each once, not as often as it runs. Constants and their sources: --constants."
)


def measured(machine: Machine) -> dict[str, float]:
    """Microseconds by case, where there is a file of that GPU."""
    file = RESULTS / f"{slug(machine.device)}.json"
    cases = json.loads(file.read_text())["cases"] if file.exists() else []
    found = {}
    for case in cases:
        medians = [case["seconds"][name]["median"] for name in OURS if name in case["seconds"]]
        if medians:
            found[case["name"]] = 1e6 * medians[0]
    return found


def facts(work: Work, known: dict[str, dict[str, float]]) -> dict[str, Any]:
    """A case, ready for JSON. known: what was measured, by machine and case."""
    sizes = work.sizes
    of = {}
    for machine in MACHINES:
        modelled = work.on(machine)
        parts = {name: round(value, 3) for name, value in asdict(modelled).items()}
        of[machine.name] = {
            "modelled_microseconds": {**parts, "total": round(modelled.total, 3)},
            "measured_microseconds": known[machine.name].get(work.case.name),
        }
    return {
        "name": work.case.name,
        "plan": work.plan,
        "waves": work.waves,
        "bytes_moved": work.case.bytes_moved,
        "launches": work.launches,
        "exchanges": work.exchanges,
        "block_barriers": sum(size.block_barriers for size in sizes),
        "instructions": sum(size.instructions for size in sizes),
        "registers": max(size.registers for size in sizes),
        "gpus": of,
    }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A line for each case."""
    result = Table(title="Modelled, not measured", box=box.SIMPLE_HEAD, caption=CAPTION, caption_justify="left")
    for name in ("case", "plan"):
        result.add_column(name, no_wrap=True)
    names = ["MB", "launches", "exchanges", "code"]
    for machine in MACHINES:
        names += [f"{machine.name}\n{what}" for what in ("modelled", "memory", "sums", "measured")]
    for name in names:
        result.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = [f"{row['bytes_moved'] / 1e6:.1f}", str(len(row["launches"])), str(row["exchanges"])]
        cells.append(str(row["instructions"]))
        for machine in MACHINES:
            of = row["gpus"][machine.name]
            modelled, known = of["modelled_microseconds"], of["measured_microseconds"]
            cells += [_time(modelled[part]) for part in ("total", "memory", "column_sums")]
            cells.append("-" if known is None else _time(known))
        result.add_row(row["name"], describe_plan(row["plan"]), *cells)
    return result


def _time(microseconds: float) -> str:
    return f"{microseconds:.0f}" if microseconds >= 100 else f"{microseconds:.1f}" if microseconds else ""


def constants() -> Table:
    """What the model goes by."""
    result = Table(box=box.SIMPLE_HEAD)
    for name in ("constant", "value", "unit", "source"):
        result.add_column(name, justify="right" if name == "value" else "left")
    for name, constant in HOPPER.items():
        result.add_row(name.replace("_", " "), f"{constant.value:g}", constant.unit, constant.source)
    for machine in MACHINES:
        of = machine.bandwidth
        result.add_row(f"bandwidth, {machine.name}", f"{of.value:g}", of.unit, of.source)
    result.add_row("processing clusters", "", str(PROCESSING_CLUSTERS), "an example: clusters of 8 run 15 at a time")
    return result


def _as_json(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    listed = {name: constant._asdict() for name, constant in HOPPER.items()}
    bandwidths = {machine.name: machine.bandwidth._asdict() for machine in MACHINES}
    return {"modelled": True, "constants": listed, "bandwidths": bandwidths, "cases": rows}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.performance_model", description=__doc__)
    parser.add_argument("library", nargs="?", type=Path, default=CUDA_LIBRARY, help="default: the package's")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only cases with this in their name")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print plain JSON")
    form.add_argument("--constants", action="store_true", help="what the model goes by, and from where")
    return parser.parse_args(arguments)


def _kernels(library: Path) -> dict[str, Kernel]:
    """By name; raises where there are none for a Hopper, or nothing reads them."""
    if not library.exists():
        raise FileNotFoundError(f"{library} is not there: the package was built without CUDA")
    kernels = {kernel.name: kernel for kernel in read(library).kernels if kernel.architecture == ARCHITECTURE}
    if not kernels:
        raise LookupError(f"{library} has no machine code for sm_{ARCHITECTURE}; VISIONZIP_CUDA_ARCHS chooses")
    return kernels


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 1 without machine code, or where VISIONZIP_PLAN asks for what cannot be."""
    options = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    if options.constants:
        console.print(constants())
        return 0
    try:
        kernels = _kernels(options.library)
        known = {machine.name: measured(machine) for machine in MACHINES}
        rows = [facts(Work(case, kernels), known) for case in cuda_cases() if options.filter in case.name]
    except (FileNotFoundError, LookupError, MissingTool, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(_as_json(rows), indent=2))
    else:
        console.print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
