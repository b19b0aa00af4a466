"""`python -m benchmarks.tune`: time the plans that the planners could choose, and print the thresholds that follow.

Results are written sweep by sweep: what is cut off goes on with the next call.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import visionzip_ext  # noqa: F401  (registers the operators)
from benchmarks.cases import quick_cases
from benchmarks.environment import environment, load
from benchmarks.places import RESULTS, slug
from benchmarks.report import LEAST_RIGHT
from benchmarks.runner import Result, Settings, measure
from benchmarks.terminal import Table, Terminal
from benchmarks.timers import Timer, timer_for
from benchmarks.tune_sweeps import DEFAULT, VARIABLES, Sweep, all_sweeps, planned, quick_sweeps, under
from benchmarks.tune_thresholds import Implied, cpu_factors, cuda_thresholds
from visionzip_ext import _C, _library

BUSY = 0.5  # programs a CPU before we have begun
SETTINGS = {
    "cpu": Settings(seconds=6.0, least_rounds=9),
    "cuda": Settings(seconds=0.5, least_rounds=50, warm_up_rounds=5),
}
QUICK = Settings(seconds=0.0, least_rounds=3, warm_up_rounds=1)
SAME = ("device", "torch", "revision", "threads", "instruction_set")
"""What must not differ between the calls that fill one file."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="whose planner (default: cpu)")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only sweeps whose name contains TEXT")
    parser.add_argument("--again", action="store_true", help="also what the file has: it was disturbed")
    parser.add_argument("--seconds", type=float, metavar="S", help="per sweep (default: 6, with cuda 0.5)")
    parser.add_argument("--time-limit", type=float, metavar="S", help="begin no sweep after S seconds")
    parser.add_argument("--quick", action="store_true", help="tiny problems and few rounds: a try, no figures")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: benchmarks/results/<device>.plan.json")
    parser.add_argument("--list", action="store_true", help="print the sweeps and stop")
    parser.add_argument("--dry-run", action="store_true", help="with --device cuda: plan for a Hopper, without a GPU")
    return parser.parse_args(arguments)


def why_not(options: argparse.Namespace, sweeps: list[Sweep]) -> str | None:
    """Why these options cannot be measured."""
    if not sweeps:
        return f'no sweep\'s name contains "{options.filter}"; --list prints them'
    if options.dry_run:
        return None if options.device == "cuda" else "--dry-run is for --device cuda; a CPU is here"
    if options.device == "cuda" and not (torch.cuda.is_available() and _library.cuda_library_loaded):
        return "--device cuda: torch sees no GPU, or the CUDA library is not loaded; --dry-run needs neither"
    return None


def dry_run(sweeps: list[Sweep], terminal: Terminal) -> int:
    """Plan each sweep; tell what cannot be. The exit status is 1 where a problem has no plan but the planner's own."""
    empty = 0
    for sweep in sweeps:
        possible = 0
        for plan in (DEFAULT, *sweep.plans):
            try:
                possible += planned(sweep.case, plan)["path"] != "none"
            except ValueError as error:
                terminal.say(f"{sweep.name}: {error}", style="yellow")
        terminal.say(f"{sweep.name}: {possible} of {1 + len(sweep.plans)} plans")
        empty += possible < 2
    return 1 if empty else 0


def sweep_as_json(sweep: Sweep, result: Result) -> dict[str, Any]:
    """One sweep, for the file."""
    case = dataclasses.asdict(sweep.case) | {"dtype": str(sweep.case.dtype).removeprefix("torch.")}
    seconds = {plan: dataclasses.asdict(timing) for plan, timing in result.timings.items()}
    return {"name": sweep.name, "about": sweep.about, **case, "seconds": seconds, "failures": dict(result.failures)}


def write(content: dict[str, Any], output: Path) -> None:
    """The whole file or none of it: a call that is cut off leaves what was there."""
    output.parent.mkdir(parents=True, exist_ok=True)
    whole = output.with_suffix(".part")
    whole.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(whole, output)


def begun(output: Path | None, facts: dict[str, Any], settings: Settings, terminal: Terminal) -> dict[str, Any]:
    """What an earlier call has measured, of the same code on the same machine; or an empty file's content."""
    fresh = {"environment": facts, "settings": dataclasses.asdict(settings), "sweeps": []}
    if output is None or not output.exists():
        return fresh
    earlier = json.loads(output.read_text())
    other = [name for name in SAME if earlier["environment"].get(name) != facts.get(name)]
    if other or earlier["settings"] != fresh["settings"]:
        terminal.say(f"{output} begins anew, as it is of other {', '.join(other) or 'settings'}", style="yellow")
        return fresh
    return earlier


def without(measured: list[dict[str, Any]], sweeps: list[Sweep]) -> list[dict[str, Any]]:
    """What was measured of other sweeps than these."""
    names = {sweep.name for sweep in sweeps}
    return [sweep for sweep in measured if sweep["name"] not in names]


def run(
    sweeps: list[Sweep],
    variable: str,
    timer: Timer,
    settings: Settings,
    content: dict[str, Any],
    output: Path | None,
    limit: float,
    terminal: Terminal,
) -> int:
    """Measure what the content lacks and can be begun within `limit` seconds; how many sweeps are left."""
    end = time.monotonic() + limit
    done = {sweep["name"] for sweep in content["sweeps"]}
    missing = [sweep for sweep in sweeps if sweep.name not in done]
    for number, sweep in enumerate(terminal.progress(missing)):
        if time.monotonic() >= end:
            return len(missing) - number
        plans = {plan: under(variable, plan) for plan in (DEFAULT, *sweep.plans)}
        content["sweeps"].append(sweep_as_json(sweep, measure(sweep.case, plans, timer, settings)))
        if output:
            write(content, output)
    return 0


def implied(device: str, content: dict[str, Any]) -> list[Implied]:
    """The thresholds that the sweeps tell something about."""
    if device == "cpu":
        return cpu_factors(content["sweeps"], _C.cpu_factors())
    facts = content["environment"]
    capability = int(facts["compute_capability"].replace(".", ""))
    current = {name: value for name, (value, _) in _C.cuda_thresholds(compute_capability=capability).items()}
    return cuda_thresholds(content["sweeps"], current, facts["multiprocessors"])


def table(thresholds: Sequence[Implied]) -> Table:
    """The thresholds, beside those in the code."""
    rows = [(each.name, f"{each.current:g}", f"{each.value:g}", each.why) for each in thresholds]
    return Table(("threshold", "in the code", "implied", "by"), rows, "a value stays where none is better beyond noise")


def wrong(content: dict[str, Any]) -> list[str]:
    """Plans whose results are not right."""
    return [
        f"{sweep['name']} by {plan}"
        for sweep in content["sweeps"]
        for plan, timing in sweep["seconds"].items()
        if timing["rows_right"] < LEAST_RIGHT
    ]


def main(arguments: list[str] | None = None) -> int:
    """Sweep, write, print; the exit status is 1 where a plan's result is wrong."""
    options = parse(arguments)
    terminal = Terminal()
    sweeps = quick_sweeps(options.device, quick_cases()) if options.quick else all_sweeps(options.device)
    sweeps = [sweep for sweep in sweeps if options.filter in sweep.name]
    if options.list:
        terminal.say("\n".join(sweep.name for sweep in sweeps))
        return 0
    if reason := why_not(options, sweeps):
        terminal.say(reason, style="red")
        return 2
    if options.dry_run:
        return dry_run(sweeps, terminal)
    if load() > BUSY:
        terminal.say(f"The machine is busy (load {load():.1f} a CPU): do not trust the figures.", style="yellow")
    settings = QUICK if options.quick else SETTINGS[options.device]
    if options.seconds is not None:
        settings = dataclasses.replace(settings, seconds=options.seconds)
    timer = timer_for(options.device)
    facts = environment(timer)
    output = options.output or (None if options.quick else RESULTS / f"{slug(facts['device'])}.plan.json")
    content = begun(output, facts, settings, terminal)
    if options.again:
        content["sweeps"] = without(content["sweeps"], sweeps)
    limit = float("inf") if options.time_limit is None else options.time_limit
    left = run(sweeps, VARIABLES[options.device], timer, settings, content, output, limit, terminal)
    terminal.show(table(implied(options.device, content)))
    if left:
        terminal.say(f"{left} sweeps are left: the same command goes on with them", style="yellow")
    mistakes = wrong(content)
    for mistake in mistakes:
        terminal.say(f"wrong result: {mistake}", style="red")
    return 1 if mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
