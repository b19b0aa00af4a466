"""Runs the bench with one model, and tells the results: a JSON file, a table, a plot."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from evaluation import statistics
from evaluation.checkpoint import IMAGE_TOKENS
from evaluation.measure import Examination, examination, examine
from evaluation.providers import ALL_TOKENS, GRIDS, PROVIDERS, Provider
from evaluation.questions import TOPICS
from evaluation.statistics import Estimate

ABOUT_THINGS = ("exist", "what", "kind", "where", "count")
"""Topics about what attracts attention; the others are about what does not."""


@dataclass(frozen=True)
class Row:
    """One provider with so many tokens an image.

    Attributes:
        accuracy: share of right answers.
        kept: share of the accuracy with all tokens.
        kept_about_things: the same of the topics in `ABOUT_THINGS` alone.
        topics: accuracy by topic.
    """

    provider: str
    tokens: int
    accuracy: Estimate
    kept: Estimate
    kept_about_things: Estimate
    topics: Mapping[str, float]


def run(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    split: str,
    scenes: int,
    *,
    seed: int = 0,
    budgets: Sequence[int] = tuple(GRIDS),
    providers: Sequence[str] = tuple(PROVIDERS),
) -> Iterator[Row]:
    """All tokens first; then each provider with each budget."""
    asked = examination(split, scenes, seed)
    with_all = examine(model, processor, asked, ALL_TOKENS, IMAGE_TOKENS)
    yield _row(ALL_TOKENS, IMAGE_TOKENS, asked, with_all, with_all)
    for tokens in sorted(budgets, reverse=True):
        for name in providers:
            right = examine(model, processor, asked, PROVIDERS[name], tokens)
            yield _row(PROVIDERS[name], tokens, asked, right, with_all)


def _row(provider: Provider, tokens: int, asked: Examination, right: Tensor, with_all: Tensor) -> Row:
    photographs = asked.photographs
    topics = {topic: torch.tensor([[own == topic for own in scene] for scene in asked.topics]) for topic in TOPICS}
    about_things = torch.stack([topics[topic] for topic in ABOUT_THINGS]).any(0)
    return Row(
        provider.name,
        tokens,
        statistics.accuracy(right, photographs),
        statistics.kept(right, with_all, photographs),
        statistics.kept(right & about_things, with_all & about_things, photographs),
        {topic: float(right[own].float().mean()) for topic, own in topics.items()},
    )


def write(path: Path, rows: Mapping[str, Sequence[Row]], settings: Mapping[str, Any]) -> None:
    """Rows by split; nothing is left half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    results = {split: [asdict(row) for row in own] for split, own in rows.items()}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"settings": settings, "results": results}, indent=1) + "\n")
    partial.rename(path)


def read(path: Path) -> dict[str, list[Row]]:
    """What `write` wrote."""
    results = json.loads(path.read_text())["results"]
    return {
        split: [Row(**{name: Estimate(**x) if name in _ESTIMATES else x for name, x in row.items()}) for row in rows]
        for split, rows in results.items()
    }


_ESTIMATES = ("accuracy", "kept", "kept_about_things")


def table(rows: Sequence[Row], measure: str) -> str:
    """Markdown: `measure` ("kept" or "kept_about_things") in percent, with half its 95 % interval."""
    budgets = sorted({row.tokens for row in rows[1:]}, reverse=True)
    head = ["", *(f"{tokens} tokens ({100 * tokens / IMAGE_TOKENS:.2g} %)" for tokens in budgets)]
    lines = [head, ["---"] * len(head)]
    for name in dict.fromkeys(row.provider for row in rows[1:]):
        own = {row.tokens: getattr(row, measure) for row in rows if row.provider == name}
        lines.append([name, *(_percent(own[tokens]) if tokens in own else "" for tokens in budgets)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} ± {50 * (estimate.high - estimate.low):.1f}"


MEASURES = {"kept": "all questions", "kept_about_things": "questions about things"}
"""What is told of a row, and its name."""


def plot(rows: Sequence[Row], path: Path) -> None:
    """Kept accuracy over tokens: of all questions, and of those about things."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.8), sharey=True, layout="constrained")
    for axis, (measure, title) in zip(axes, MEASURES.items(), strict=True):
        for number, name in enumerate(dict.fromkeys(row.provider for row in rows[1:])):
            own = sorted((row for row in rows if row.provider == name), key=lambda row: row.tokens)
            shares = [100 * row.tokens / IMAGE_TOKENS for row in own]
            estimates = [getattr(row, measure) for row in own]
            axis.plot(shares, [100 * x.value for x in estimates], marker="osD^vP"[number % 6], label=name)
            axis.fill_between(shares, [100 * x.low for x in estimates], [100 * x.high for x in estimates], alpha=0.12)
        axis.set(title=title, xlabel="visual tokens kept (%)", xscale="log")
        axis.set_xticks([5.6, 11, 22, 33], ["5.6", "11", "22", "33"])
        axis.minorticks_off()
        axis.axhline(100, color="0.5", linewidth=0.8)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy, % of that with all tokens")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
