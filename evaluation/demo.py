"""`python -m evaluation demo`: the trained model answers questions about an image, with all tokens and with few."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

import visionzip_ext
from evaluation import statistics
from evaluation.answers import generated
from evaluation.checkpoint import IMAGE_TOKENS
from evaluation.first_layers import FirstLayers
from evaluation.measure import Examination, examination, examine
from evaluation.provider import Provider
from evaluation.providers import ALL_TOKENS, PROVIDERS, split
from evaluation.questions import Question
from visionzip_ext.demo import picture

_TOPICS = ("what", "where", "background")
"""Of the three questions: two about things, and one about what attracts no attention."""


def show(model: LlavaForConditionalGeneration, processor: LlavaProcessor, tokens: int, scenes: int, path: Path) -> None:
    """Prints answers and accuracies, and draws which patches were kept.

    Args:
        model: the trained one; as it was, afterwards.
        processor: the same.
        tokens: that few tokens an image have, one of `providers.GRIDS`.
        scenes: how many the accuracy is of. The first one is shown.
        path: of the picture.
    """
    asked = examination("validation", scenes)
    console = Console()
    with FirstLayers().remembered(model.model.vision_tower):
        of_topic = {question.topic: question for question in asked.questions[0] if question.answer != "nothing"}
        questions = [of_topic[topic] for topic in _TOPICS if topic in of_topic]
        console.print(_answers(model, processor, asked, questions, tokens))
        _draw(model, processor, asked, tokens, path)
        console.print(_accuracies(model, processor, asked, tokens))
    console.print(f"[bold]Picture[/bold] {path}: the image, and what is kept of it\n", highlight=False)


def _answers(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    asked: Examination,
    questions: list[Question],
    tokens: int,
) -> Table:
    table = Table(
        title="A trained model, and an image that it never saw",
        caption="A small LLaVA over a trained DINOv2-small; it knows 71 words. Few tokens keep what attention finds.",
        box=box.SIMPLE_HEAVY,
        title_justify="left",
        caption_justify="left",
    )
    for head in ("question", "the truth", f"all {IMAGE_TOKENS} tokens", f"VisionZip, {tokens} tokens"):
        table.add_column(head)
    said = []
    for provider, count in ((ALL_TOKENS, IMAGE_TOKENS), (PROVIDERS["visionzip"], tokens)):
        with provider.applied(model, processor, count) as answer:
            said.append(answer(model, processor, [asked.scenes[0].image], [[question.text for question in questions]]))
    for question, *answers in zip(questions, *said, strict=True):
        table.add_row(f"{question.text}?", question.answer, *(_marked(x, question.answer) for x in answers))
    return table


def _marked(answer: str, right: str) -> str:
    return f"[green]{answer}  right[/green]" if answer == right else f"[red]{answer}  wrong[/red]"


def _draw(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, asked: Examination, tokens: int, path: Path
) -> None:
    image = asked.scenes[0].image
    with PROVIDERS["visionzip"].applied(model, processor, tokens):
        generated(model, processor, [image], [["what at top-left"]])
        decision = visionzip_ext.last_zip(model)
    pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    images = picture.pixels_to_images(pixels, processor.image_processor.image_mean, processor.image_processor.image_std)
    picture.draw(path, images, decision, "by the attention of a trained encoder")


def _accuracies(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, asked: Examination, tokens: int
) -> Table:
    table = Table(
        title=f"{len(asked.scenes)} such images, {len(asked.scenes) * len(asked.questions[0])} questions",
        caption="With 95 % intervals. `make quality` measures more, docs/quality.md tells what.",
        box=box.SIMPLE_HEAVY,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("")
    for head in ("right, %", "of that with all, %"):
        table.add_column(head, justify="right")

    def right(provider: Provider, count: int) -> Tensor:
        return examine(model, processor, asked, provider, count)

    with_all = right(ALL_TOKENS, IMAGE_TOKENS)
    dominant, contextual = split(tokens)
    rows = {
        f"all {IMAGE_TOKENS} tokens": with_all,
        f"VisionZip, {dominant} + {contextual} tokens": right(PROVIDERS["visionzip"], tokens),
        f"{tokens} random tokens": right(PROVIDERS["random"], tokens),
    }
    for name, answers in rows.items():
        estimates = (
            statistics.accuracy(answers, asked.photographs),
            statistics.kept(answers, with_all, asked.photographs),
        )
        table.add_row(name, *(f"{100 * x.value:.1f} ± {50 * (x.high - x.low):.1f}" for x in estimates))
    return table
