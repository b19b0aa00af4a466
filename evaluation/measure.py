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

from evaluation.provider import Provider
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
        provider.applied(model, processor, tokens) as answer,
        tqdm(total=len(examination.scenes), desc=f"{provider.name}, {tokens}", leave=False, disable=None) as progress,
    ):
        while batch := list(islice(numbers, _BATCH)):
            questions = [examination.questions[i] for i in batch]
            texts = [[question.text for question in asked] for asked in questions]
            said = answer(model, processor, [examination.scenes[i].image for i in batch], texts)
            right = [question.answer for asked in questions for question in asked]
            parts.append(torch.tensor([a == b for a, b in zip(said, right, strict=True)]).view(len(batch), -1))
            progress.update(len(batch))
    return torch.cat(parts)
