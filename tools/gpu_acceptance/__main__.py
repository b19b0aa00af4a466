"""`python -m tools.gpu_acceptance`: on a machine with a GPU, all that only such a machine can do, in calls of minutes.

Builds for the GPU that is there, checks the operators on every path of the kernels, sweeps plans, profiles and
measures. No network is needed. Each step has a share of a call's time; what does not fit is put off and comes first in
the next call, which goes on where the last one stopped, also where that was cut off. All that is found lies in one
folder, written step by step; once no step is left, the figures are copied to benchmarks/results. With --emulated, a dry
run for machines without a GPU: tiny sizes, and the emulated kernels in its place.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import plot
from benchmarks.places import RESULTS, ROOT, slug
from benchmarks.terminal import Terminal
from tools.gpu_acceptance.runner import Step, run_steps
from tools.gpu_acceptance.state import Outcome, State, header
from tools.gpu_acceptance.steps import emulated_steps, figures, gpu_steps, profiled, swept

FOLDER = ROOT / "build" / "gpu_acceptance"
MINUTES = 9.0
SPARE = 15.0  # seconds of a call that no step has: for starting, ending and drawing
OK, FAILED, NO_GPU, LEFT = range(4)
"""Exit statuses."""


def results(outcomes: Sequence[Outcome], device: str, folder: Path) -> dict[str, Any]:
    """The file's content: all that was measured, the cases of all benchmarks together, and what became of each step."""
    content: dict[str, Any] = {"environment": {"device": device}, "summary": {}, "cases": []}
    for file in filter(Path.exists, figures(folder)):
        measured = json.loads(file.read_text())
        content |= measured | {
            "summary": content["summary"] | measured.get("summary", {}),  # by operator
            "cases": content["cases"] + measured.get("cases", []),
        }
    seconds = round(sum(outcome.seconds for outcome in outcomes), 1)
    return {**content, "acceptance": {"seconds": seconds, "steps": [asdict(outcome) for outcome in outcomes]}}


def write(content: dict[str, Any], output: Path) -> None:
    """The whole file or none of it."""
    whole = output.with_suffix(".part")
    whole.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(whole, output)


def publish(name: str, folder: Path) -> None:
    """Copy the figures to where those of all machines lie."""
    shutil.copy(folder / f"{name}.json", RESULTS)
    for file, ending in ((folder / f"{name}.png", "png"), (swept(folder), "plan.json")):
        if file.exists():
            shutil.copy(file, RESULTS / f"{name}.{ending}")


def gpu() -> tuple[str, str] | None:
    """The GPU's name and its architecture (90 for 9.0); None where torch sees none."""
    import torch  # takes seconds, which a dry run need not wait for

    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name(), "{}{}".format(*torch.cuda.get_device_capability())


def begin(folder: Path, device: str, again: bool, terminal: Terminal) -> State:
    """The state of earlier calls; without any, no figures of theirs either."""
    state = State(folder, header(device), again)
    if state.is_new:
        for file in (*figures(folder), swept(folder), profiled(folder)):
            file.unlink(missing_ok=True)
    terminal.say("begins anew" if state.is_new else f"goes on: {len(state.outcomes)} steps are known")
    return state


def call(steps: Sequence[Step], total: float, state: State, device: str, terminal: Terminal) -> list[Outcome]:
    """What became of all steps so far, in their order, after a call of `total` seconds; written step by step."""
    output = state.folder / f"{slug(device)}.json"

    def known() -> list[Outcome]:
        return [state.outcomes[step.name] for step in steps if step.name in state.outcomes]

    for _ in run_steps(steps, total, state, terminal):
        write(results(known(), device, state.folder), output)
    terminal.say(plot.draw(results(known(), device, state.folder), output.with_suffix(".png")))
    return known()


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0 if no step is left and none failed, 1 if one failed, 2 without a GPU, 3 if some are left."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_acceptance", description=__doc__.splitlines()[0])
    parser.add_argument("--emulated", action="store_true", help="a dry run without a GPU")
    parser.add_argument("--output", type=Path, default=FOLDER, metavar="FOLDER", help="default: build/gpu_acceptance")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, metavar="M", help="of this call (default: %(default)g)"
    )
    parser.add_argument("--again", action="store_true", help="begin anew, whatever earlier calls have done")
    options = parser.parse_args(arguments)
    if 60 * options.minutes <= SPARE:
        parser.error(f"--minutes is {options.minutes:g}; expected more than {SPARE / 60:g}")
    terminal = Terminal()
    found = ("emulated", "") if options.emulated else gpu()
    if found is None:
        terminal.say("torch sees no GPU; --emulated makes a dry run without one", style="red")
        return NO_GPU
    device, architecture = found
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(FAILED))  # as an exception, which ends the step that is running
    folder = options.output.resolve()  # steps run in the repository's root
    state = begin(folder, device, options.again, terminal)
    steps = emulated_steps(folder) if options.emulated else gpu_steps(architecture, folder)
    outcomes = call(steps, 60 * options.minutes - SPARE, state, device, terminal)

    words = [outcome.word for outcome in outcomes]
    told = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))
    terminal.say(f"of {len(steps)} steps: {told}; all of it lies in {folder}")
    unfinished = [step.name for step in steps if not state.has_finished(step.name)]
    if unfinished:
        terminal.say(f"left: {', '.join(unfinished)}: the same command goes on with them", style="yellow")
    elif not options.emulated:
        publish(slug(device), folder)
    if {"failed", "timed out"} & {*words}:
        return FAILED
    return LEFT if unfinished else OK


if __name__ == "__main__":
    sys.exit(main())
