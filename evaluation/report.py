"""Runs the bench with one model, and tells the results: a JSON file, a table, a plot."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from evaluation import statistics
from evaluation.checkpoint import IMAGE_TOKENS
from evaluation.first_layers import FirstLayers
from evaluation.measure import Examination, examination, examine
from evaluation.provider import Provider
from evaluation.providers import ALL_TOKENS, GRIDS, PROVIDERS, REDUCING
from evaluation.questions import TOPICS
from evaluation.statistics import Estimate

ABOUT_THINGS = ("exist", "what", "kind", "where", "count")
"""Topics about what attracts attention; the others are about what does not."""


@dataclass(frozen=True)
class Row:
    """One provider with so many tokens an image, of one trained model or of several together.

    Attributes:
        accuracy: share of right answers.
        kept: share of the accuracy with all tokens.
        kept_about_things: the same of the topics in `ABOUT_THINGS` alone.
        gained: accuracy less VisionZip's with as many tokens.
        topics: accuracy by topic.
        kept_by_topic: share of a topic's accuracy with all tokens.
        kept_by_model: `kept` of each trained model.
    """

    provider: str
    tokens: int
    accuracy: Estimate
    kept: Estimate
    kept_about_things: Estimate
    gained: Estimate
    topics: Mapping[str, Estimate]
    kept_by_topic: Mapping[str, Estimate]
    kept_by_model: Sequence[float]


def run(
    models: Sequence[tuple[LlavaForConditionalGeneration, LlavaProcessor]],
    split: str,
    scenes: int,
    *,
    seed: int = 0,
    budgets: Sequence[int] = tuple(GRIDS),
    providers: Sequence[str] = tuple(REDUCING),
) -> Iterator[Row]:
    """All tokens first; then each provider with each budget, VisionZip before the others.

    Every model answers the same questions; a row tells of all models' answers.
    """
    asked = examination(split, scenes, seed)
    layers = FirstLayers()

    def answered(provider: Provider, tokens: int) -> Tensor:
        """(models, scenes, questions)."""
        rights = []
        for model, processor in models:
            with layers.remembered(model.model.vision_tower):
                rights.append(examine(model, processor, asked, provider, tokens))
        return torch.stack(rights)

    with_all = answered(ALL_TOKENS, IMAGE_TOKENS)
    yield _row(ALL_TOKENS, IMAGE_TOKENS, asked, with_all, with_all, with_all)
    for tokens in sorted(budgets, reverse=True):
        visionzip = answered(PROVIDERS["visionzip"], tokens)
        yield _row(PROVIDERS["visionzip"], tokens, asked, visionzip, with_all, visionzip)
        for name in providers:
            if name != "visionzip":
                right = answered(PROVIDERS[name], tokens)
                yield _row(PROVIDERS[name], tokens, asked, right, with_all, visionzip)


def _row(
    provider: Provider, tokens: int, asked: Examination, right: Tensor, with_all: Tensor, visionzip: Tensor
) -> Row:
    """Answers are (models, scenes, questions): a scene's of all models stay together, as its photograph's do."""
    models = len(right)
    photographs = asked.photographs.repeat(models)
    of_topic = torch.tensor([[TOPICS.index(topic) for topic in scene] for scene in asked.topics]).repeat(models, 1)
    about_things = torch.isin(of_topic, torch.tensor([TOPICS.index(topic) for topic in ABOUT_THINGS]))
    by_model = right.flatten(1).sum(1) / with_all.flatten(1).sum(1)
    right, with_all, visionzip = (answers.flatten(0, 1) for answers in (right, with_all, visionzip))

    def by_topic(estimate: Callable[[Tensor], Estimate]) -> dict[str, Estimate]:
        return {topic: estimate(of_topic == number) for number, topic in enumerate(TOPICS)}

    return Row(
        provider.name,
        tokens,
        statistics.accuracy(right, photographs),
        statistics.kept(right, with_all, photographs),
        statistics.kept(right & about_things, with_all & about_things, photographs),
        statistics.difference(right, visionzip, photographs),
        by_topic(lambda own: statistics.accuracy(right, photographs, own)),
        by_topic(lambda own: statistics.kept(right & own, with_all & own, photographs)),
        by_model.tolist(),
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
        split: [Row(**{name: _estimates(x) for name, x in row.items()}) for row in rows]
        for split, rows in results.items()
    }


def _estimates(x: Any) -> Any:
    """Back from JSON: an `Estimate`, or several by name."""
    if not isinstance(x, dict):
        return x
    return Estimate(**x) if "value" in x else {name: Estimate(**one) for name, one in x.items()}


def table(rows: Sequence[Row], measure: str, providers: Sequence[str] | None = None) -> str:
    """Markdown: `measure` ("kept", "kept_about_things" or "gained") in percent, with half its 95 % interval.

    Of several models' "kept", the lowest and the highest of a single model follow in brackets.
    """
    budgets = sorted({row.tokens for row in rows[1:]}, reverse=True)
    lines = [["", *(f"{tokens} tokens ({100 * tokens / IMAGE_TOKENS:.2g} %)" for tokens in budgets)]]
    for name in providers or _names(rows):
        own = {row.tokens: row for row in rows if row.provider == name}
        lines.append([name, *(_cell(own[tokens], measure) if tokens in own else "" for tokens in budgets)])
    return _markdown(lines)


def topic_table(rows: Sequence[Row], tokens: int, providers: Sequence[str] | None = None) -> str:
    """Markdown: what is kept of each topic's accuracy, in percent; first the accuracy itself, with all tokens."""
    lines = [["", *TOPICS], [ALL_TOKENS.name, *(_percent(rows[0].topics[topic]) for topic in TOPICS)]]
    for row in rows:
        if row.tokens == tokens and (providers is None or row.provider in providers):
            lines.append([row.provider, *(_percent(row.kept_by_topic[topic]) for topic in TOPICS)])
    return _markdown(lines)


def split_table(results: Mapping[str, Sequence[Row]], measure: str, tokens: int, providers: Sequence[str]) -> str:
    """Markdown: `measure` in percent, as `table` does, with so many tokens, in each split."""
    lines = [["", *results]]
    for name in providers:
        row = (next(row for row in rows if (row.provider, row.tokens) == (name, tokens)) for rows in results.values())
        lines.append([name, *(_percent(getattr(one, measure), signed=measure == "gained") for one in row)])
    return _markdown(lines)


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.provider for row in rows[1:]))


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *others = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *others))


def _cell(row: Row, measure: str) -> str:
    value = _percent(getattr(row, measure), signed=measure == "gained")
    if measure == "kept" and len(row.kept_by_model) > 1:
        return f"{value} ({100 * min(row.kept_by_model):.1f} to {100 * max(row.kept_by_model):.1f})"
    return value


def _percent(estimate: Estimate, *, signed: bool = False) -> str:
    return f"{100 * estimate.value:{'+' if signed else ''}.1f} ± {50 * (estimate.high - estimate.low):.1f}"


MEASURES = {"kept": "all questions", "kept_about_things": "questions about things"}
"""What is told of a row, and its name."""


def plot(rows: Sequence[Row], path: Path, providers: Sequence[str] | None = None) -> None:
    """Kept accuracy over tokens: of all questions, and of those about things."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.8), sharey=True, layout="constrained")
    for axis, (measure, title) in zip(axes, MEASURES.items(), strict=True):
        for number, name in enumerate(providers or _names(rows)):
            own = sorted((row for row in rows if row.provider == name), key=lambda row: row.tokens)
            shares = [100 * row.tokens / IMAGE_TOKENS for row in own]
            estimates = [getattr(row, measure) for row in own]
            axis.plot(shares, [100 * x.value for x in estimates], marker="osD^vP*Xh<>p"[number % 12], label=name)
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
