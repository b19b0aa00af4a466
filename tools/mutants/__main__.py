"""`python -m tools.mutants [planted|generated] [PATTERN]`; without a word, both kinds."""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from tools.mutants.faults import FAULTS
from tools.mutants.planted import ROOT, survivors


def planted(pattern: str) -> bool:
    """Whether tests see all faults in C++ whose names contain the pattern."""
    faults = [fault for fault in FAULTS if pattern in fault.name]
    with tempfile.TemporaryDirectory() as folder:
        survived = survivors(faults, Path(folder))
    print(f"{len(faults) - len(survived)} of {len(faults)} planted faults were seen")
    return not survived


def generated(pattern: str) -> bool:
    """Whether tests see all that mutmut makes of functions whose dotted names begin with the pattern."""
    mutmut = Path(sysconfig.get_path("scripts"), "mutmut")
    subprocess.run([mutmut, "run", *([f"{pattern}*"] if pattern else [])], cwd=ROOT, check=True)
    results = subprocess.run([mutmut, "results"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    survived = [line.strip() for line in results.splitlines() if line.endswith(": survived")]
    print("\n".join(survived), f"\n{len(survived)} generated mutants survived; `mutmut show NAME` shows one")
    return not survived


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 1 where a fault went unseen."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.mutants", description="Plant faults; tell what no test sees."
    )
    parser.add_argument(
        "kind", nargs="?", choices=("planted", "generated"), help="in C++, or in Python (default: both)"
    )
    parser.add_argument("pattern", nargs="?", default="", help="only faults, or functions, of this name")
    options = parser.parse_args(arguments)
    kinds = {"planted": planted, "generated": generated}
    seen = [kinds[kind](options.pattern) for kind in kinds if options.kind in (None, kind)]
    return 0 if all(seen) else 1


if __name__ == "__main__":
    sys.exit(main())
