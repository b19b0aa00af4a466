"""`python -m tools.gpu_acceptance.machine`: what times on this machine are compared with.

The bandwidth of a copy, what the timer shows for nothing and for the smallest kernel, and the clusters that run, and
how many of them at the same time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import visionzip_ext  # noqa: F401  (registers the operators)
from benchmarks.cases import Case
from benchmarks.providers import Copy, ours
from benchmarks.timers import Timer, timer_for
from benchmarks.tune_sweeps import VARIABLES, overridden

COPIED = {"cpu": 64 << 20, "cuda": 1 << 30}  # bytes
ROUNDS = 20
MOST_CLUSTER_BLOCKS = 16
SMALL = {"model": "small", "B": 1, "S": 577, "C": 1024, "H": 16, "D": 64, "k": 54, "m": 10}


def median(timer: Timer, call: Callable[[], object]) -> float:
    """Of a call's seconds, after one that warms up."""
    return statistics.median([timer.seconds(call) for _ in range(ROUNDS + 1)][1:])


def clusters(device: torch.device) -> dict[int, str]:
    """For each number of blocks, "runs", or why no cluster of so many does."""
    case = Case(op="zip", dtype=torch.bfloat16, **SMALL)
    inputs = case.inputs(device, 0)
    found = {}
    for blocks in range(1, MOST_CLUSTER_BLOCKS + 1):
        try:
            with overridden(VARIABLES["cuda"], f"path=cluster,team={blocks}"):
                ours(case, inputs)
            found[blocks] = "runs"
        except (RuntimeError, ValueError) as error:
            found[blocks] = str(error).splitlines()[0]
    return found


def clusters_at_once(ops: Any, device: torch.device) -> dict[int, int]:
    """For each number of blocks, how many such clusters run at the same time: what plans go by."""
    return dict(enumerate(ops._clusters(torch.empty(0, device=device)), 1))


def measure(device: str) -> dict[str, Any]:
    """The figures; those of clusters on a GPU alone."""
    timer = timer_for(device)
    source = torch.ones(COPIED[device] // 4, device=timer.device)
    element = torch.zeros(1, device=timer.device)
    copied = median(timer, Copy(source, torch.empty_like(source)))
    facts = {
        "copy_bytes_per_second": 2 * source.nbytes / copied,
        "seconds_for_nothing": median(timer, lambda: None),
        "seconds_for_the_smallest_kernel": median(timer, element.zero_),
    }
    if device != "cuda":
        return facts
    at_once = clusters_at_once(torch.ops.visionzip, timer.device)
    return {**facts, "clusters": clusters(timer.device), "clusters_at_once": at_once}


def main(arguments: list[str] | None = None) -> int:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_acceptance.machine", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="default: %(default)s")
    parser.add_argument("--emulated", type=Path, metavar="LIBRARY", help="the emulated kernels' clusters as well")
    parser.add_argument("--output", type=Path, metavar="FILE", required=True, help="where the figures are written")
    options = parser.parse_args(arguments)
    facts = measure(options.device)
    if options.emulated:
        torch.ops.load_library(options.emulated)
        at_once = clusters_at_once(torch.ops.visionzip_emulated, torch.device("cpu"))
        facts["emulated_clusters_at_once"] = at_once
    options.output.write_text(json.dumps({"machine": facts}, indent=1) + "\n")
    for name, value in facts.items():
        print(f"{name}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
