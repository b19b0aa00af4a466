"""`python -m benchmarks.compare OLD.json NEW.json`: whether any case became slower, by ratios of each file's own run.

A time alone says little, as machines differ; so each timing of ours is divided by yardsticks of its own run: a read
or a copy of the same bytes (the fraction of the roofline), and the strongest form of the same steps in PyTorch, which
is the one that was fastest in the old run; where there is neither, the released steps. A ratio that falls by more
than the limit and the noise of the four medians that make it up is a regression, and a single one fails. So does a
case that is missing, wrong, or too noisy to be judged. Whole encoders are judged likewise, by the released way's time
and by its memory.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.providers import OURS, STRONGEST, YARDSTICKS
from benchmarks.report import LEAST_RIGHT
from benchmarks.terminal import Table, Terminal

LIMIT = 0.10
LAST_YARDSTICK = "released"
ENCODER_YARDSTICK = "released"

FAILING = ("worse", "too noisy", "missing", "failed", "wrong")
ROUNDING = 1e-9  # a fall by exactly the limit is none over it

Json = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What became of one provider's timing in one case."""

    case: str
    provider: str
    yardstick: str = ""
    word: str = "same"
    """One of FAILING; or same, better or new."""
    old: float | None = None
    """How many times as fast as the yardstick: for `read` and `copy`, the fraction of the roofline."""
    new: float | None = None
    noise: float = 0.0
    """By how much the change may be wrong."""

    @property
    def change(self) -> float | None:
        """Of the ratio; below 0 for the worse."""
        return self.new / self.old - 1 if self.old and self.new else None

    @property
    def fails(self) -> bool:
        """Whether this alone makes the comparison fail."""
        return self.word in FAILING


def median_noise(timing: Json) -> float:
    """Half of the median's 95 % interval (McGill, Tukey, Larsen 1978), as a share of the median."""
    spread = timing["third_quartile"] - timing["first_quartile"]
    return 1.57 * spread / math.sqrt(timing["calls"]) / timing["median"]


def judge(change: float, noise: float, limit: float) -> str:
    """The word for a change of a ratio."""
    if change < -(limit + noise) * (1 + ROUNDING):
        return "worse"
    if noise > limit:
        return "too noisy"
    return "better" if change > limit + noise else "same"


def _compare_ratio(case: str, provider: str, yardstick: str, old: Json, new: Json, limit: float) -> Verdict:
    """One provider against one yardstick; `old` and `new` are the case's timings."""
    before = old[yardstick]["median"] / old[provider]["median"]
    after = new[yardstick]["median"] / new[provider]["median"]
    noise = math.hypot(*(median_noise(run[name]) for run in (old, new) for name in (provider, yardstick)))
    return Verdict(case, provider, yardstick, judge(after / before - 1, noise, limit), before, after, noise)


def _compare_provider(case: str, provider: str, old: Json, new: Json, limit: float) -> Iterator[Verdict]:
    """One provider that the old run measured, in a case that both have."""
    timings = new["seconds"]
    if provider not in timings:
        yield Verdict(case, provider, word="failed" if provider in new.get("failures", {}) else "missing")
        return
    if timings[provider]["rows_right"] < LEAST_RIGHT:
        yield Verdict(case, provider, word="wrong")
        return
    yardsticks = _yardsticks(old["seconds"]) or [LAST_YARDSTICK]
    if not any(name in old["seconds"] for name in yardsticks):
        yield Verdict(case, provider, LAST_YARDSTICK, word="missing")
    for yardstick in yardsticks:
        if yardstick in old["seconds"] and yardstick in timings:
            yield _compare_ratio(case, provider, yardstick, old["seconds"], timings, limit)
        elif yardstick in old["seconds"]:
            yield Verdict(case, provider, yardstick, word="missing")


def _yardsticks(timings: Json) -> list[str]:
    """What was measured of memory, and PyTorch's fastest."""
    strongest = sorted((name for name in STRONGEST if name in timings), key=lambda name: timings[name]["median"])
    return [*(name for name in YARDSTICKS if name in timings), *strongest[:1]]


def _timing(seconds: list[float]) -> Json:
    """Of a few calls, in the form in which the cases' are stored."""
    first, median, third = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"first_quartile": first, "median": median, "third_quartile": third, "calls": len(seconds)}


def _compare_encoder(name: str, old: Json, new: Json | None, limit: float) -> Iterator[Verdict]:
    if new is None or new.get("wrong"):
        yield Verdict(name, OURS[0], word="missing" if new is None else "wrong")
        return
    timings = ({provider: _timing(seconds) for provider, seconds in run["seconds"].items()} for run in (old, new))
    yield _compare_ratio(name, OURS[0], ENCODER_YARDSTICK, *timings, limit)
    before, after = (run["peak_bytes"][ENCODER_YARDSTICK] / run["peak_bytes"][OURS[0]] for run in (old, new))
    yield Verdict(name, OURS[0], f"{ENCODER_YARDSTICK}, memory", judge(after / before - 1, 0, limit), before, after)


def _compare_encoders(old: Json, new: Json, limit: float) -> Iterator[Verdict]:
    """Files that have none, such as a GPU's, are as good as files with an empty list."""
    before, after = ({case["name"]: case for case in run.get("encoder", ())} for run in (old, new))
    for name, case in before.items():
        yield from _compare_encoder(name, case, after.get(name), limit)
    for name in after.keys() - before.keys():
        yield Verdict(name, OURS[0], word="new")


def compare(old: Json, new: Json, limit: float = LIMIT) -> list[Verdict]:
    """All verdicts: of the old run's cases in its order, then of those that are new, then of encoders."""
    before, after = ({case["name"]: case for case in run["cases"]} for run in (old, new))
    verdicts = []
    for name, case in before.items():
        measured = [provider for provider in OURS if provider in case["seconds"]]
        if name not in after:
            verdicts += [Verdict(name, provider, word="missing") for provider in measured or OURS[:1]]
            continue
        for provider in measured:
            verdicts += _compare_provider(name, provider, case, after[name], limit)
    verdicts += [Verdict(name, OURS[0], word="new") for name in after if name not in before]
    return [*verdicts, *_compare_encoders(old, new, limit)]


def differences(old: Json, new: Json) -> list[str]:
    """What else differs between the runs."""
    before, after = old["environment"], new["environment"]
    names = ("torch", "cuda", "driver", "triton", "threads", "instruction_set")
    return [
        f"{name}: {before.get(name)}, now {after.get(name)}" for name in names if before.get(name) != after.get(name)
    ]


def table(verdicts: list[Verdict]) -> Table:
    """A row each, those that fail first."""

    def number(x: float | None, form: str) -> str:
        return "-" if x is None else format(x, form)

    rows = [
        (
            verdict.case,
            verdict.provider,
            verdict.yardstick or "-",
            number(verdict.old, ".2f"),
            number(verdict.new, ".2f"),
            number(verdict.change, "+.1%"),
            f"±{verdict.noise:.1%}",
            verdict.word,
        )
        for verdict in sorted(verdicts, key=lambda verdict: not verdict.fails)
    ]
    columns = ("case", "provider", "yardstick", "old", "new", "change", "noise", "verdict")
    return Table(columns, rows, "yardstick's time / ours, each of its own run: larger is better")


def _read(path: Path) -> Json:
    """A file of results; raises ValueError where it is none."""
    content = json.loads(path.read_text())
    if not isinstance(content, dict) or not {"cases", "environment"} <= content.keys():
        raise ValueError(f"{path} is no file of results")
    return content


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0, 1 where something fails, 2 where there is nothing to compare."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, metavar="OLD.json")
    parser.add_argument("new", type=Path, metavar="NEW.json")
    parser.add_argument("--limit", type=float, default=LIMIT, help="the largest fall of a ratio (default: %(default)g)")
    parser.add_argument("--all", action="store_true", help="show the cases that stayed the same as well")
    options = parser.parse_args(arguments)
    terminal = Terminal()
    try:
        old, new = _read(options.old), _read(options.new)
    except (OSError, ValueError) as error:
        terminal.say(str(error), style="red")
        return 2
    devices = [run["environment"].get("device") for run in (old, new)]
    if devices[0] != devices[1]:
        terminal.say(f"measured on different devices: {devices[0]} and {devices[1]}", style="red")
        return 2
    verdicts = compare(old, new, options.limit)
    if not verdicts:
        terminal.say(f"{options.old} holds no case", style="red")
        return 2
    return tell(verdicts, differences(old, new), options.all, terminal)


def tell(verdicts: list[Verdict], changed: list[str], everything: bool, terminal: Terminal) -> int:
    """Print; returns the exit status."""
    for line in changed:
        terminal.say(line, style="yellow")
    shown = [verdict for verdict in verdicts if everything or verdict.word != "same"]
    if shown:
        terminal.show(table(shown))
    counts = {word: sum(verdict.word == word for verdict in verdicts) for word in (*FAILING, "better", "new", "same")}
    terminal.say(", ".join(f"{count} {word}" for word, count in counts.items() if count))
    fails = any(verdict.fails for verdict in verdicts)
    terminal.say("FAILED" if fails else "passed", style="red" if fails else "green")
    return 1 if fails else 0


if __name__ == "__main__":
    sys.exit(main())
