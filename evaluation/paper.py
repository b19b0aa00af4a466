"""Results of lmms-eval beside the figures that the paper publishes for LLaVA-1.5 7B without training.

Source: table 1 of VisionZip (arXiv 2412.04467).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ALL_TOKENS = 576


@dataclass(frozen=True)
class Benchmark:
    """A column of the paper's table, and what it is in lmms-eval.

    Attributes:
        tasks: of lmms-eval, the first that was run.
        metrics: their sum is the score.
        percent: the paper's figure for a metric of 1.
    """

    name: str
    tasks: tuple[str, ...]
    metrics: tuple[str, ...]
    percent: float = 100.0


BENCHMARKS = (
    Benchmark("GQA", ("gqa",), ("exact_match",)),
    Benchmark("MMB", ("mmbench_en_dev", "mmbench_en_dev_static"), ("gpt_eval_score",), percent=1.0),
    Benchmark("MME", ("mme",), ("mme_perception_score", "mme_cognition_score"), percent=1.0),
    Benchmark("POPE", ("pope",), ("pope_f1_score",)),
    Benchmark("SQA", ("scienceqa_img",), ("exact_match",)),
    Benchmark("VQAv2", ("vqav2_val",), ("exact_match",)),
    Benchmark("VQAText", ("textvqa_val",), ("exact_match",)),
    Benchmark("MMMU", ("mmmu_val",), ("mmmu_acc",)),
    Benchmark("SEED", ("seedbench",), ("seed_all",)),
    Benchmark("MMVet", ("mmvet",), ("gpt_eval_score",), percent=1.0),
    Benchmark("LLaVA-B", ("llava_in_the_wild",), ("gpt_eval_llava_all",), percent=1.0),
)

_NAMES = tuple(benchmark.name for benchmark in BENCHMARKS)

PUBLISHED = {
    ALL_TOKENS: (61.9, 64.7, 1862.0, 85.9, 69.5, 78.5, 58.2, 36.3, 58.6, 31.1, 66.8),
    192: (59.3, 63.0, 1782.6, 85.3, 68.9, 76.8, 57.3, 36.6, 56.4, 31.7, 67.7),
    128: (57.6, 62.0, 1761.7, 83.2, 68.9, 75.6, 56.8, 37.9, 54.9, 32.6, 64.8),
    64: (55.1, 60.1, 1690.0, 77.0, 69.0, 72.4, 55.5, 36.2, 52.2, 31.7, 62.9),
}
"""By visual tokens; in the order of `BENCHMARKS`."""

PUBLISHED_AVERAGES = {192: 98.5, 128: 97.6, 64: 94.0}
"""Percent of the accuracy with all tokens, as published: the mean over benchmarks."""


class ResultsError(RuntimeError):
    """Files that cannot be laid beside the paper's table; the message says which and why."""


@dataclass(frozen=True)
class Results:
    """Of one checkpoint: `scores` by visual tokens an image, then by benchmark."""

    checkpoint: str
    scores: Mapping[int, Mapping[str, float]]


def read(folder: Path) -> Results:
    """All `*_results.json` below a folder; of several runs of a benchmark with the same budget the last.

    Raises:
        FileNotFoundError: there are none.
        ResultsError: a file is not of lmms-eval, results are of several checkpoints, or of a share of the tokens.
    """
    files = sorted(folder.rglob("*_results.json"), key=lambda path: path.name)  # their names begin with the time
    if not files:
        raise FileNotFoundError(f"{folder} has no *_results.json, which `lmms-eval --output_path` writes")
    scores: dict[int, dict[str, float]] = {}
    checkpoints = set()
    for path in files:
        run = json.loads(path.read_text())
        if not {"config", "results"} <= run.keys():
            raise ResultsError(f"{path} is not of lmms-eval: expected config and results in it")
        arguments = _arguments(run["config"]["model_args"])
        if "keep" in arguments:
            raise ResultsError(f"{path} has keep={arguments['keep']}; the paper's table has dominant and contextual")
        checkpoints.add(arguments.get("pretrained", "lmms-eval's default"))
        scores.setdefault(_tokens(run["config"]["model"], arguments), {}).update(_scores(run["results"]))
    if len(checkpoints) > 1:
        raise ResultsError(f"{folder} has results of several checkpoints: {', '.join(sorted(checkpoints))}")
    return Results(checkpoints.pop(), scores)


def _arguments(told: str | Mapping[str, Any]) -> dict[str, str]:
    pairs = told.items() if isinstance(told, Mapping) else (pair.partition("=")[::2] for pair in told.split(","))
    return {name: str(value) for name, value in pairs}


def _tokens(model: str, arguments: Mapping[str, str]) -> int:
    if not model.startswith("visionzip") or arguments.get("compress", "").lower() == "false":
        return ALL_TOKENS
    return int(arguments.get("dominant", 54)) + int(arguments.get("contextual", 10))


def _scores(results: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    for benchmark in BENCHMARKS:
        for task in benchmark.tasks:
            values = [results.get(task, {}).get(f"{metric},none") for metric in benchmark.metrics]
            if all(isinstance(value, (int, float)) for value in values):
                yield benchmark.name, benchmark.percent * sum(values)
                break


def table(measured: Mapping[int, Mapping[str, float]]) -> str:
    """Markdown: for each budget the scores, the paper's and those measured, and what each keeps of all tokens'."""
    published = {tokens: dict(zip(_NAMES, scores, strict=True)) for tokens, scores in PUBLISHED.items()}
    head = ["tokens", "", *_NAMES, "average"]
    lines = [head, ["---"] * len(head)]
    for tokens in sorted({*published, *measured}, reverse=True):
        for name, source in (("paper", published), ("measured", measured)):
            scores = source.get(tokens, {})
            if not scores:
                continue
            lines.append([str(tokens), name, *_cells(scores), ""])
            if tokens != ALL_TOKENS:
                kept = _kept(scores, source.get(ALL_TOKENS, {}))
                lines.append([str(tokens), f"{name}, % kept", *_cells(kept), _average(kept)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _kept(scores: Mapping[str, float], with_all: Mapping[str, float]) -> dict[str, float]:
    """Percent, of the benchmarks that were run with both."""
    return {name: 100 * score / with_all[name] for name, score in scores.items() if with_all.get(name)}


def _cells(values: Mapping[str, float]) -> list[str]:
    return [f"{values[name]:.1f}" if name in values else "" for name in _NAMES]


def _average(kept: Mapping[str, float]) -> str:
    """As the paper's, over benchmarks; where some are missing it says over how many."""
    if not kept:
        return ""
    average = f"{sum(kept.values()) / len(kept):.1f}"
    return average if len(kept) == len(BENCHMARKS) else f"{average} (of {len(kept)})"
