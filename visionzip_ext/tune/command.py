"""The command: its arguments, and what happens in which order."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import HfArgumentParser, TrainingArguments

from visionzip_ext.tune import subject
from visionzip_ext.tune.batches import collator
from visionzip_ext.tune.conversations import read
from visionzip_ext.tune.errors import TuneError
from visionzip_ext.tune.output import Output
from visionzip_ext.tune.training import PartTrainer, accuracy, last_checkpoint, predictions

_USER_ERROR = 2  # as argparse exits
_BUDGET = ("dominant", "contextual", "keep", "merge", "budget_per", "layout")
REPORT_FILE = "tuning.json"

# The paper's (section 2.4 and its appendix), where they are not Trainer's own defaults.
_DEFAULTS = {"learning_rate": 2e-5, "num_train_epochs": 1.0, "lr_scheduler_type": "cosine", "save_total_limit": 1}


def parents() -> list[argparse.ArgumentParser]:
    """The arguments that are Trainer's, unchanged: all of `TrainingArguments`, taken and left out of the help."""
    trainers = HfArgumentParser(TrainingArguments, add_help=False)
    trainers.set_defaults(**_DEFAULTS)
    for action in trainers._actions:
        action.help = argparse.SUPPRESS
    return [trainers]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    parser.epilog = (
        "All arguments of transformers.TrainingArguments go to its Trainer: --num_train_epochs 1, "
        "--per_device_train_batch_size 16, --bf16, --gradient_checkpointing, --fsdp full_shard, --report_to wandb, "
        "... Several processes: torchrun --nproc-per-node 8 -m visionzip_ext tune ..., or accelerate launch."
    )
    add = parser.add_argument
    add("--model", required=True, metavar="PATH_OR_HUB_NAME", help="a checkpoint for transformers")
    add("--data", required=True, type=Path, metavar="FILE", help="conversations: LLaVA's JSON, or a folder of datasets")
    add("--images", type=Path, metavar="FOLDER", help="where paths of images begin (default: the folder of the file)")
    add("--output", required=True, type=Path, metavar="FOLDER", help="the checkpoint to write; must not exist")
    add("--train", choices=subject.PARTS, default="projector", help="what learns (default: projector)")
    add("--fraction", type=_fraction, default=0.1, help="of the conversations that is learnt from (default: 0.1)")
    add("--check", type=Path, metavar="FILE", help="conversations whose answers are checked before and after")
    add("--dominant", type=int, metavar="K", help="tokens kept (default: 54)")
    add("--contextual", type=int, metavar="M", help="tokens merged into (default: 10)")
    add("--keep", type=float, metavar="SHARE", help="of the tokens of each image, tile or frame, instead")
    add("--merge", metavar="NAME", help="residual (default) or mean")
    add("--budget-per", metavar="NAME", help="tile (default) or image")
    add("--layout", metavar="NAME", help="released (default) or native")
    add("--all-tokens", action="store_true", help="compress nothing: what few tokens are compared with")


def run(args: argparse.Namespace) -> int:
    """Tune; return the exit status: 0, or 2 for something that the user can mend."""
    try:
        tune(args)
    except TuneError as error:
        print(f"visionzip_ext tune: {error.line}", file=sys.stderr)
        return _USER_ERROR
    return 0


def tune(args: argparse.Namespace) -> PartTrainer:
    """Do what the arguments say; return the Trainer, as it is after training.

    Raises:
        TuneError: something that the user can mend; there is no output then.
    """
    output = Output(args.output)
    asked = _asked(args)
    arguments = _training_arguments(args, output.work)
    conversations = read(args.data, args.images)
    chosen = conversations.part(args.fraction, arguments.seed)
    chosen.check_images()
    checked = read(args.check, args.images) if args.check else None
    if checked is not None:
        checked.check_images()

    model, processor = subject.load(args.model, _dtype(arguments))
    subject.zip_as_asked(model, processor, asked["setting"])
    trained = subject.choose_parts(model, args.train)
    subject.in_single_precision(model)
    own_side, processor.tokenizer.padding_side = processor.tokenizer.padding_side, "right"
    asked["conversations"] = len(chosen)
    first = arguments.process_index == 0
    with output.claimed(asked) if first else contextlib.nullcontext():
        trainer = PartTrainer(
            trained,
            model=model,
            args=arguments,
            train_dataset=chosen,
            eval_dataset=checked,
            data_collator=collator(model, processor),
            compute_metrics=accuracy,
            preprocess_logits_for_metrics=predictions,
        )
        metrics = trainer.train(resume_from_checkpoint=_checkpoint(arguments, output)).metrics
        weights = trainer.trained_weights()
        after = trainer.evaluate() if checked else {}
        if first:
            report = asked | {
                "left_out": conversations.left_out,
                "trained_parameters": sum(x.numel() for x in weights.values()),
                "seconds": metrics["train_runtime"],
                "loss": metrics["train_loss"],
                "peak_memory_bytes": _peak_memory(),
            }
            if checked:
                report |= {"answers": after["eval_answers"], "accuracy_before": _first_accuracy(trainer)}
                report |= {"accuracy_after": after["eval_accuracy"]}
            processor.tokenizer.padding_side = own_side
            _write(output, asked, processor, weights, report)
            _show(output.folder, report)
    return trainer


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """What the weights depend on, in plain values."""
    setting = {name: getattr(args, name) for name in _BUDGET if getattr(args, name) is not None}
    if args.all_tokens and setting:
        raise TuneError(f"--all-tokens compresses nothing; got {', '.join(setting)} as well")
    return {
        "model": args.model,
        "data": str(args.data),
        "train": args.train,
        "fraction": args.fraction,
        "setting": None if args.all_tokens else setting,
        "seed": args.seed,
    }


def _training_arguments(args: argparse.Namespace, work: Path) -> TrainingArguments:
    if args.output_dir is not None:
        raise TuneError(f"--output_dir {args.output_dir}: give --output; checkpoints are kept beside it meanwhile")
    names = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    given = {name: value for name, value in vars(args).items() if name in names}
    # The collator takes whole conversations, whose fields no model knows. The first evaluation is Trainer's own: one
    # before `train` would mark the model as prepared, which then is not wrapped, and processes would each go their way.
    given |= {"output_dir": str(work), "remove_unused_columns": False, "eval_on_start": args.check is not None}
    try:
        arguments = TrainingArguments(**given)
        on_cpu = arguments.device.type == "cpu"
    except (ValueError, RuntimeError, ImportError) as error:
        raise TuneError(" ".join(str(error).split())) from None
    if on_cpu and _is_sharded(arguments):
        raise TuneError("FSDP and DeepSpeed need GPUs: accelerate leaves them out on CPUs, and says nothing")
    return arguments


def _is_sharded(arguments: TrainingArguments) -> bool:
    """Whether FSDP or DeepSpeed is asked for, by Trainer's arguments or by `accelerate launch`."""
    by_launcher = any(os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true" for name in ("FSDP", "DEEPSPEED"))
    return bool(arguments.fsdp or arguments.deepspeed) or by_launcher


def _dtype(arguments: TrainingArguments) -> torch.dtype:
    """Of what does not learn. FSDP and DeepSpeed want one dtype, and choose that of computations themselves."""
    if _is_sharded(arguments):
        return torch.float32
    return torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else torch.float32


def _checkpoint(arguments: TrainingArguments, output: Output) -> str | None:
    return arguments.resume_from_checkpoint or last_checkpoint(output.work)


def _write(output: Output, asked: dict[str, Any], processor: Any, weights: dict[str, Tensor], report: Any) -> None:
    """The checkpoint as it was loaded, in its own dtype, with what learnt put in: the rest keeps its bits."""
    model, _ = subject.load(asked["model"], "auto")
    subject.put_in(model, weights)
    subject.zip_as_asked(model, processor, asked["setting"])
    with output.written() as folder:
        subject.save(model, processor, folder)
        (folder / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n")


def _first_accuracy(trainer: PartTrainer) -> float:
    """Before the first step, also where that was before an interruption: the log goes with the checkpoints."""
    return next(entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry)


def _peak_memory() -> int:
    """Bytes, of this process: on the GPU where there is one, otherwise in main memory, the model's loading included."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _show(folder: Path, report: dict[str, Any]) -> None:
    learnt = f"{report['trained_parameters']:,} parameters ({report['train']}) learnt from"
    print(f"{learnt} {report['conversations']:,} conversations in {report['seconds']:.1f} s")
    if report["left_out"]:
        print(f"{report['left_out']:,} conversations without an image were left out")
    print(f"peak memory {report['peak_memory_bytes'] / 2**20:,.0f} MiB")
    if "answers" in report:
        before, after = (100 * report[f"accuracy_{when}"] for when in ("before", "after"))
        print(f"of {report['answers']:,} answers right: {before:.1f} % before, {after:.1f} % after")
    print(f"written: {folder}")


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and at most 1, got {text!r}")
    return value
