"""The command: its arguments, and what happens in which order."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.markup import escape

from visionzip_ext.demo import picture, report
from visionzip_ext.demo.errors import DemoError
from visionzip_ext.demo.measure import VARIANTS, measure
from visionzip_ext.demo.photographs import cropped, photographs
from visionzip_ext.demo.subject import DTYPES, Subject, device_named, load
from visionzip_ext.integrations.transformers import ZipDecision, compress, restore

_USER_ERROR = 2  # as argparse exits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the demo's arguments."""
    parser.add_argument(
        "--model",
        metavar="PATH_OR_HUB_NAME",
        help="a LLaVA-1.5 checkpoint for transformers, such as llava-hf/llava-1.5-7b-hf "
        "(default: LLaVA-1.5's vision tower and a small language model, random weights)",
    )
    parser.add_argument(
        "--image", nargs="+", default=[], metavar="FILE", help="photographs (default: one from scikit-image)"
    )
    parser.add_argument(
        "--dominant", type=_at_least(1), default=54, metavar="K", help="tokens kept, CLS among them (default: 54)"
    )
    parser.add_argument(
        "--contextual", type=_at_least(0), default=10, metavar="M", help="tokens merged into (default: 10)"
    )
    parser.add_argument("--prompt", default="What is in this picture?", help="the question about each image")
    parser.add_argument(
        "--max-new-tokens", type=_at_least(1), default=16, metavar="N", help="length of answers (default: 16)"
    )
    parser.add_argument(
        "--repeats", type=_at_least(1), default=7, metavar="N", help="timed forwards of each (default: 7)"
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is a GPU)")
    parser.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        default="auto",
        help="of the weights (default: auto, the checkpoint's own; float32 for random weights)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("visionzip_demo.png"), help="picture to write (default: visionzip_demo.png)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo; return the exit status: 0, or 2 for something that the user can mend."""
    transformers.utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    try:
        _run(args)
    except DemoError as error:
        print(f"visionzip_ext demo: {error}", file=sys.stderr)
        return _USER_ERROR
    return 0


def _run(args: argparse.Namespace) -> None:
    budget: dict[str, Any] = {"dominant": args.dominant, "contextual": args.contextual}
    images = photographs(args.image)
    device = device_named(args.device)
    if not args.output.absolute().parent.is_dir():
        raise DemoError(f"--output {args.output}: no such folder: {args.output.parent}")
    runs = len(VARIANTS) * (1 + args.repeats)
    with report.Steps(total=1 + runs + 1) as step:
        step("loading the model" if args.model else "building the model")
        subject = load(args.model, args.prompt, device, args.dtype)
        _check_budget(subject, budget)
        measurement = measure(
            subject,
            images,
            args.prompt,
            budget,
            repeats=args.repeats,
            max_new_tokens=args.max_new_tokens,
            progress=step,
        )
        step("drawing")
        image_processor = subject.processor.image_processor
        seen = picture.pixels_to_images(measurement.pixel_values, image_processor.image_mean, image_processor.image_std)
        _write(args.output, seen, measurement.decision, subject.caution)
    console = Console()
    report.show(console, measurement, subject.description, _where(subject), budget)
    for note in cropped(images, args.image, measurement.pixel_values):
        console.print(f"[bold]Cropped[/bold] {escape(note)}", highlight=False)
    console.print(f"[bold]Picture[/bold] {args.output}", highlight=False)


def _check_budget(subject: Subject, budget: dict[str, Any]) -> None:
    try:
        compress(subject.model, subject.processor, **budget)
    except (TypeError, ValueError) as error:
        raise DemoError(str(error)) from None
    restore(subject.model, subject.processor)


def _write(path: Path, images: np.ndarray, decision: ZipDecision, note: str) -> None:
    try:
        picture.draw(path, images, decision, note)
    except (OSError, ValueError) as error:
        raise DemoError(f"--output {path}: {error}") from None


def _where(subject: Subject) -> str:
    device, dtype = subject.model.device, str(subject.model.dtype).removeprefix("torch.")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return f"{device.type} ({name}), {dtype}, torch {torch.__version__}, transformers {transformers.__version__}"


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}, got {value}")
        return value

    return number
