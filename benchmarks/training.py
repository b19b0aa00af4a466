"""`python -m benchmarks.training`: training with all visual tokens and with few, each in a process of its own.

The model is the demo's: LLaVA-1.5's vision tower and a small language model with random weights, which change neither
time nor memory. The small language model makes the difference smaller than one of billions of parameters does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.environment import processor
from visionzip_ext.demo.random_llava import random_llava

QUESTION, ANSWER = "What is in this picture?", "a small house by the river under a wide sky"
VARIANTS = {"all tokens": ["--all-tokens"], "54 + 10": ["--dominant", "54", "--contextual", "10"]}


@dataclass(frozen=True)
class Measured:
    """Of a whole training: seconds a step, and bytes at the peak, the model's own among them."""

    seconds: float
    peak_memory: int


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--steps", type=int, default=4, help="of each (default: 4)")
    parser.add_argument("--batch", type=int, default=1, help="conversations a step (default: 1)")
    parser.add_argument("--train", choices=("all", "projector"), default="all", help="what learns (default: all)")
    return parser.parse_args(arguments)


def prepare(folder: Path, conversations: int) -> None:
    """A checkpoint, and conversations about images of noise."""
    for part in random_llava(f"{QUESTION} {ANSWER}", torch.float32):
        part.save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": ANSWER}]
    for number in range(conversations):
        Image.fromarray(rng.integers(0, 255, (336, 336, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    records = [{"image": f"{number}.png", "conversations": turns} for number in range(conversations)]
    (folder / "data.json").write_text(json.dumps(records))


def measure(folder: Path, options: argparse.Namespace, tokens: list[str]) -> Measured:
    """What `tune` reports of itself."""
    output = folder / "tuned"
    where = ["--model", folder / "model", "--data", folder / "data.json", "--output", output, "--fraction", "1"]
    how = ["--train", options.train, "--per_device_train_batch_size", options.batch, "--save_strategy", "no"]
    command = [sys.executable, "-m", "visionzip_ext", "tune", *where, *how, "--logging_strategy", "no", *tokens]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    report = json.loads((output / "tuning.json").read_text())
    output.rename(folder / f"tuned-{tokens[-1]}")
    return Measured(report["seconds"] / options.steps, report["peak_memory_bytes"])


def table(measured: dict[str, Measured]) -> Table:
    """A row for each, and its share of the first."""
    first = next(iter(measured.values()))
    rows = Table("visual tokens", "seconds a step", "of all", "peak memory, MiB", "of all")
    for name, one in measured.items():
        time, memory = one.seconds / first.seconds, one.peak_memory / first.peak_memory
        peak = f"{one.peak_memory / 2**20:,.0f}"
        rows.add_row(name, f"{one.seconds:.2f}", f"{100 * time:.0f} %", peak, f"{100 * memory:.0f} %")
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    options = parse(arguments)
    with TemporaryDirectory() as name:
        prepare(Path(name), options.steps * options.batch)
        measured = {variant: measure(Path(name), options, tokens) for variant, tokens in VARIANTS.items()}
    console = Console()
    console.print(
        f"{processor()}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}; --train {options.train}"
    )
    console.print(table(measured))


if __name__ == "__main__":
    main()
