"""`python -m tools.gpu_acceptance.profile`: counters of the kernels by ncu, as CSV.

What warps wait for, bank conflicts of shared memory, and how busy the memory is: for one image and a batch, and for
column sums in one pass over the keys and in two.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

import visionzip_ext  # noqa: F401  (registers the operators)
from benchmarks.cases import LLAVA, LONG_MEAN, SIGLIP, Case, quick_cases
from benchmarks.places import ROOT
from benchmarks.providers import ours

STALLS = ("barrier", "long_scoreboard", "membar", "mio_throttle", "no_instruction", "short_scoreboard", "wait")
METRICS = (
    "gpu__time_duration.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_st.sum",
    *(f"smsp__average_warps_issue_stalled_{stall}_per_issue_active.ratio" for stall in STALLS),
)
NCU = ("ncu", "--csv", "--print-units", "base", "--kernel-name-base", "demangled", "--kernel-name", "regex:visionzip")


def cases() -> list[Case]:
    """One call of each is profiled."""
    bf16 = {"dtype": torch.bfloat16}
    at_64 = {"k": 54, "m": 10, **bf16}
    return [
        Case(op="zip", B=1, **at_64, **LLAVA),
        Case(op="zip_qk", B=1, **at_64, **LLAVA),
        Case(op="zip", B=160, **at_64, **LLAVA),
        Case(op="zip_qk", B=1, **at_64, **SIGLIP),
        Case(op="zip_qk", B=1, k=384, m=64, **bf16, **LONG_MEAN),
    ]


def call(problems: list[Case], device: torch.device) -> None:
    """Each once, in order."""
    for case in problems:
        ours(case, case.inputs(device, 0))
        print(f"called {case.name}", flush=True)


def rows(text: str) -> tuple[list[str], list[str]]:
    """The lines of the table, which begin with a quoted cell, and what else was printed."""
    lines = text.splitlines()
    return [line for line in lines if line.startswith('"')], [line for line in lines if not line.startswith('"')]


def profile(output: Path) -> int:
    """Run ncu on a process that makes the calls; the exit status is 1 where it fails or counts nothing."""
    program = (sys.executable, "-m", "tools.gpu_acceptance.profile", "--cases", "all")
    command = [*NCU, "--metrics", ",".join(METRICS), *program]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    table, others = rows(done.stdout)
    print("\n".join(others))
    if done.returncode != 0 or len(table) < 2:  # the first line is the columns' names
        print(f"ncu: exit status {done.returncode}, {max(0, len(table) - 1)} counters")
        return 1
    output.write_text("\n".join(table) + "\n")
    print(f"{len(table) - 1} counters")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_acceptance.profile", description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--output", type=Path, metavar="FILE", help="run ncu, and write its table")
    what.add_argument("--cases", choices=("all", "tiny"), help="make the calls that are profiled; tiny: on the CPU")
    options = parser.parse_args(arguments)
    if options.output:
        return profile(options.output)
    tiny = options.cases == "tiny"
    call(quick_cases() if tiny else cases(), torch.device("cpu" if tiny else "cuda"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
