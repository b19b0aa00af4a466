"""`python -m benchmarks`: time this library's operators beside PyTorch's best form and beside memory."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

import visionzip_ext  # noqa: F401  (registers the operators)
from benchmarks import plot, report
from benchmarks.cases import Case, all_cases, quick_cases
from benchmarks.environment import environment, load
from benchmarks.places import RESULTS, slug
from benchmarks.providers import CPU_PROVIDERS, CUDA_PROVIDERS, Provider, all_providers, is_for
from benchmarks.runner import Result, Settings, measure, not_measured
from benchmarks.terminal import Terminal
from benchmarks.timers import Timer, timer_for
from visionzip_ext import _library

BUSY = 0.5  # programs a CPU before we have begun
SETTINGS = {"cpu": Settings(), "cuda": Settings(seconds=1.0, least_rounds=20, warm_up_rounds=50)}
QUICK = Settings(seconds=0.0, least_rounds=3, warm_up_rounds=1)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure (default: cpu)")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument(
        "--providers",
        nargs="+",
        choices={**CPU_PROVIDERS, **CUDA_PROVIDERS},
        help="who is measured (default: everybody)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads, for all alike (default: torch's)")
    parser.add_argument("--seconds", type=float, metavar="S", help="per case (default: 3, with cuda 1)")
    parser.add_argument("--time-limit", type=float, metavar="S", help="begin no case after S seconds, and say so")
    parser.add_argument("--quick", action="store_true", help="tiny problems and few rounds: a try, no figures")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: benchmarks/results/<device>.json")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    return parser.parse_args(arguments)


def why_not(options: argparse.Namespace, cases: list[Case]) -> str | None:
    """Why these options cannot be measured."""
    if not cases:
        return f'no case\'s name contains "{options.filter}"; --list prints them'
    unknown = set(options.providers or ()) - all_providers(options.device).keys()
    if unknown:
        return f"--providers: with --device {options.device} there is no {', '.join(sorted(unknown))}"
    if options.device == "cuda" and not torch.cuda.is_available():
        return "--device cuda: torch sees no GPU"
    if options.device == "cuda" and not _library.cuda_library_loaded:
        return "--device cuda: the CUDA library is not loaded; `python -m visionzip_ext info` says why"
    return None


def run(
    device: str,
    cases: list[Case],
    providers: dict[str, Provider],
    timer: Timer,
    settings: Settings,
    limit: float,
    terminal: Terminal,
) -> list[Result]:
    """Measure all cases that can be begun within `limit` seconds, showing progress."""
    end = time.monotonic() + limit
    results = []
    for case in terminal.progress(cases):
        own = {name: provider for name, provider in providers.items() if is_for(name, case, device)}
        if time.monotonic() < end:
            results.append(measure(case, own, timer, settings))
        else:
            results.append(not_measured(case, own, "the time limit was reached before"))
    return results


def tell(results: list[Result], terminal: Terminal) -> None:
    """Tables, summary, and what is missing."""
    terminal.show(report.times(results))
    terminal.show(report.ratios(results))
    for line in report.summary_lines(results):
        terminal.say(line)
    for line in report.failures(results):
        terminal.say(f"not measured: {line}", style="yellow")


def encoders(device: str, terminal: Terminal) -> list[dict]:
    """Whole encoders, for the file."""
    if not importlib.util.find_spec("transformers"):
        terminal.say("not measured: whole encoders, as transformers is not installed", style="yellow")
        return []
    from benchmarks import encoder

    return [cost.as_json() for cost in encoder.measure_all(encoder.encoder_cases(device), terminal)]


def write(content: dict, output: Path, terminal: Terminal) -> None:
    """The file of results, and a plot beside it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(content, indent=1) + "\n")
    terminal.say(f"written to {output}")
    terminal.say(plot.draw(content, output.with_suffix(".png")))


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; the exit status is 1 where a result of ours is wrong or missing."""
    options = parse(arguments)
    terminal = Terminal()
    cases = quick_cases() if options.quick else all_cases(options.device)
    cases = [case for case in cases if options.filter in case.name]
    if options.list:
        terminal.say("\n".join(case.name for case in cases))
        return 0
    if reason := why_not(options, cases):
        terminal.say(reason, style="red")
        return 2
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = QUICK if options.quick else SETTINGS[options.device]
    if options.seconds is not None:
        settings = replace(settings, seconds=options.seconds)

    if load() > BUSY:
        terminal.say(f"The machine is busy (load {load():.1f} a CPU): do not trust the figures.", style="yellow")
    timer = timer_for(options.device)
    facts = environment(timer)
    providers = {
        name: provider
        for name, provider in all_providers(options.device).items()
        if not options.providers or name in options.providers
    }
    limit = float("inf") if options.time_limit is None else options.time_limit
    results = run(options.device, cases, providers, timer, settings, limit, terminal)
    tell(results, terminal)
    whole = not (options.quick or options.filter or options.providers)
    output = options.output or (RESULTS / f"{slug(facts['device'])}.json" if whole else None)
    content = report.as_json(results, settings, facts)
    if whole and options.time_limit is None:
        content["encoder"] = encoders(options.device, terminal)
    if output:
        write(content, output, terminal)
    wrong = report.wrong(results)
    for name in wrong:
        terminal.say(f"wrong result: {name}", style="red")
    return 1 if wrong or report.we_failed(results) else 0


if __name__ == "__main__":
    sys.exit(main())
