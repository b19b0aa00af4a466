"""`python -m benchmarks`: time this library's operators beside the released implementation's recipe."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import visionzip_ext  # noqa: F401  (registers the operators)
from benchmarks import report
from benchmarks.cases import Case, all_cases, quick_cases
from benchmarks.providers import PROVIDERS
from benchmarks.runner import Result, Settings, measure

NARROWEST = 120  # columns, in a file or a pipe
BUSY = 0.5  # programs a CPU before we have begun
QUICK = Settings(seconds=0.0, least_rounds=3, warm_up_rounds=1)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", choices=("cpu",), default="cpu", help="where to measure (default: cpu)")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=list(PROVIDERS), help="who is measured")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads, for all alike (default: torch's)")
    parser.add_argument("--seconds", type=float, metavar="S", help=f"per case (default: {Settings.seconds:g})")
    parser.add_argument("--quick", action="store_true", help="tiny problems and few rounds: a try, no figures")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: benchmarks/results/<device>.json")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    return parser.parse_args(arguments)


def run(cases: list[Case], options: argparse.Namespace, settings: Settings, console: Console) -> list[Result]:
    """Measure all cases, showing progress."""
    providers = {name: PROVIDERS[name] for name in options.providers}
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    results = []
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(cases))
        for case in cases:
            progress.update(task, description=case.name)
            results.append(measure(case, providers, torch.device(options.device), settings))
            progress.advance(task)
    return results


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; the exit status is 1 where a result of ours is wrong."""
    options = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else NARROWEST)
    cases = [case for case in (quick_cases() if options.quick else all_cases()) if options.filter in case.name]
    if options.list:
        console.print(*(case.name for case in cases), sep="\n", highlight=False)
        return 0
    if not cases:
        console.print(f'no case\'s name contains "{options.filter}"; --list prints them', style="red")
        return 2
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = QUICK if options.quick else Settings()
    if options.seconds is not None:
        settings = Settings(options.seconds, settings.least_rounds, settings.warm_up_rounds)

    if report.load() > BUSY:
        console.print(
            f"The machine is busy (load {report.load():.1f} a CPU): do not trust the figures.", style="yellow"
        )
    environment = report.environment()
    results = run(cases, options, settings, console)
    console.print(report.table(results))
    for line in report.summary_lines(results):
        console.print(line, highlight=False)
    whole = not (options.quick or options.filter)
    output = options.output or (report.RESULTS / f"{report.slug(report.processor())}.json" if whole else None)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report.as_json(results, settings, environment), indent=1) + "\n")
        console.print(f"written to {output}")
    wrong = report.wrong(results)
    for name in wrong:
        console.print(f"wrong result: {name}", style="red")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
