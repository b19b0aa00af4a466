"""Accuracy from pixels: the model generates its answers, through the public API alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from evaluation.providers import Provider
from evaluation.questions import Question, ask
from evaluation.scenes import Scene, split

QUESTIONS = 14
"""About each scene: two of each topic."""
_BATCH = 10


@dataclass(frozen=True)
class Examination:
    """Scenes and the questions that are asked about them: the same for every provider."""

    scenes: Sequence[Scene]
    questions: Sequence[Sequence[Question]]

    @property
    def photographs(self) -> Tensor:
        """(scenes,) the number of the photograph behind each."""
        return torch.tensor([scene.photograph for scene in self.scenes])

    @property
    def topics(self) -> list[list[str]]:
        """(scenes, questions)."""
        return [[question.topic for question in asked] for asked in self.questions]


def examination(name: str, count: int, seed: int = 0) -> Examination:
    """The first `count` scenes of a split; another seed gives fresh ones."""
    scenes = list(split(name, seed).scenes(count))
    rng = random.Random(f"examination/{name}/{seed}")
    return Examination(scenes, [ask(scene, QUESTIONS, rng) for scene in scenes])


def examine(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    examination: Examination,
    provider: Provider,
    tokens: int,
) -> Tensor:
    """Whether each answer is right: (scenes, questions) of bool."""
    numbers = iter(range(len(examination.scenes)))
    parts = []
    with (
        provider.applied(model, processor, tokens),
        tqdm(total=len(examination.scenes), desc=f"{provider.name}, {tokens}", leave=False) as progress,
    ):
        while batch := list(islice(numbers, _BATCH)):
            images = [examination.scenes[i].image for i in batch]
            parts.append(_right(model, processor, images, [examination.questions[i] for i in batch]))
            progress.update(len(batch))
    return torch.cat(parts)


@torch.inference_mode()
def _right(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    images: list,
    questions: Sequence[Sequence[Question]],
) -> Tensor:
    """The images are read once; each question goes on from the cache, as the turns of a conversation do."""
    number = len(questions[0])
    read = processor(images=images, text=["<image>"] * len(images), return_tensors="pt")
    cache = model(**read, use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(number)
    texts = [question.text for asked in questions for question in asked]
    asked = processor.tokenizer(texts, add_special_tokens=False, return_tensors="pt")["input_ids"]
    ids = torch.cat([read["input_ids"].repeat_interleave(number, 0), asked], 1)
    said = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        max_new_tokens=1,
        do_sample=False,
    )
    answers = processor.batch_decode(said[:, -1:])
    right = [question.answer for asked in questions for question in asked]
    return torch.tensor([a.strip() == b for a, b in zip(answers, right, strict=True)]).view(-1, number)
