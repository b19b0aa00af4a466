"""``python -m tools.kernel_report``: the table of kernels; exit status 1 where one is not what it should be."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tools.kernel_report import baseline
from tools.kernel_report.checks import Finding, find
from tools.kernel_report.exemptions import EXEMPTIONS
from tools.kernel_report.library import Kernel, Library, MissingTool, read

LIBRARY = Path(__file__).resolve().parents[2] / "visionzip_ext" / "libvisionzip_cuda.so"
WIDTH = 120  # columns, in a file or a pipe

LEGEND = (
    "Registers of a thread · blocks that a multiprocessor has registers and threads for + bytes of local memory. "
    "Shared memory that a launch asks for is not counted."
)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.kernel_report", description=__doc__)
    parser.add_argument("library", nargs="?", type=Path, default=LIBRARY, help="default: the package's")
    parser.add_argument("--json", action="store_true", help="print plain JSON")
    parser.add_argument("--accept", action="store_true", help="hold later kernels to these: write the table")
    return parser.parse_args(arguments)


def facts(library: Library, findings: Iterable[Finding]) -> dict[str, Any]:
    """Everything, ready for JSON."""
    return {
        "kernels": [
            {
                "name": kernel.name,
                "architecture": kernel.architecture,
                "registers": kernel.usage.registers,
                "local_bytes": kernel.local_bytes,
                "spill_store_bytes": kernel.spilled_bytes("STL"),
                "spill_load_bytes": kernel.spilled_bytes("LDL"),
                "static_shared_bytes": kernel.static_shared,
                "threads": kernel.code.threads,
                "resident_blocks": kernel.resident_blocks,
                "occupancy": kernel.resident_blocks * kernel.code.threads / kernel.most_threads,
                "instructions": len(kernel.code.instructions),
            }
            for kernel in library.kernels
        ],
        "ptx": library.ptx,
        "nvcc": library.nvcc,
        "findings": [vars(finding) for finding in findings],
    }


def table(library: Library) -> Table:
    """A row for each kernel, a column for each architecture."""
    architectures = sorted({kernel.architecture for kernel in library.kernels}, key=lambda name: int(name.rstrip("af")))
    ptx = ", ".join(f"compute_{name}" for name in library.ptx)
    machine_code = f"machine code for {', '.join(architectures) or 'no GPU'}; PTX for {ptx or 'none'}"
    title = f"nvcc {library.nvcc or 'before 13.0'}; {machine_code}"
    result = Table(title=title, box=box.SIMPLE_HEAD, caption=LEGEND, caption_justify="left")
    result.add_column("kernel", no_wrap=True)
    for name in architectures:
        result.add_column(f"sm_{name}", justify="right", no_wrap=True)
    for template, kernels in _grouped(library.kernels, lambda kernel: kernel.name.partition("<")[0]).items():
        threads = max(kernel.code.threads for kernel in kernels)
        shared = max(kernel.static_shared for kernel in kernels)
        result.add_section()
        result.add_row(Text(template, style="bold"))
        result.add_row(Text(f"  {threads} threads, {shared} bytes shared", style="dim"))
        for name, compiled in _grouped(kernels, lambda kernel: kernel.name).items():
            of = {kernel.architecture: kernel for kernel in compiled}
            result.add_row(Text("  " + name.removeprefix(template)), *(_cell(of.get(name)) for name in architectures))
    return result


def _grouped(kernels: Iterable[Kernel], key: Callable[[Kernel], str]) -> dict[str, list[Kernel]]:
    groups: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        groups.setdefault(key(kernel), []).append(kernel)
    return groups


def _cell(kernel: Kernel | None) -> Text:
    if kernel is None:
        return Text("-", style="dim")
    cell = Text(f"{kernel.usage.registers}·{kernel.resident_blocks}")
    if kernel.local_bytes:
        cell.append(f" +{kernel.local_bytes}B", style="red")
    return cell


def _print_findings(console: Console, findings: list[Finding]) -> None:
    """Those that fail one by one, those that are exempt by their reasons."""
    for finding in findings:
        if finding.excuse is None:
            console.print(Text(f"✗ {finding}", style="red"))
    excuses: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        if finding.excuse is not None:
            name = f"{finding.kernel} sm_{finding.architecture}"
            excuses.setdefault((finding.check, finding.excuse), []).append(name)
    for (check, excuse), names in excuses.items():
        console.print(Text(f"exempt: {check}: {excuse} ({len(names)}: {names[0]}{', ...' if names[1:] else ''})"))
    if all(finding.excuse is not None for finding in findings):
        console.print(Text("✓ the machine code is what it should be", style="green"))


def _grown(library: Library, accept: bool) -> bool:
    """Whether a kernel outgrew the committed table, which is told; `accept` writes the table instead."""
    built = baseline.summary(library)
    if accept:
        baseline.accept(built, baseline.TABLE)
    table = json.loads(baseline.TABLE.read_text()) if baseline.TABLE.exists() else {"nvcc": "", "kernels": {}}
    if table["nvcc"] != library.nvcc:
        print(f"growth not checked: the table is of nvcc {table['nvcc'] or '(none)'}", file=sys.stderr)
        return False
    found = list(baseline.growth(built, table))
    for message in found:
        print(f"grown: {message}; KERNELS_ARGS=--accept accepts it", file=sys.stderr)
    return bool(found)


def main(arguments: list[str] | None = None) -> int:
    """Read the library, print, and say whether all is well."""
    options = parse(arguments)
    if not options.library.exists():
        print(f"{options.library} is not there: the package was built without CUDA", file=sys.stderr)
        return 1
    try:
        library = read(options.library)
    except MissingTool as error:
        print(error, file=sys.stderr)
        return 1
    findings = find(library.kernels, EXEMPTIONS.get(library.nvcc, ()))
    if options.json:
        print(json.dumps(facts(library, findings), indent=2))
    else:
        console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
        console.print(table(library))
        _print_findings(console, findings)
    grown = options.library == LIBRARY and _grown(library, options.accept)
    return int(grown or any(finding.excuse is None for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
