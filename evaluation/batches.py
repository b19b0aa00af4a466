"""Several questions about each scene in one sequence: the scene is read once, and no question sees another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evaluation.checkpoint import VOCABULARY
from evaluation.questions import LENGTH, Question

_IGNORED = -100  # what transformers' losses leave out


def sequences(questions: Sequence[Sequence[Question]], visual_tokens: int) -> dict[str, Tensor]:
    """Inputs of the language model for B scenes with Q questions each.

    Returns input_ids (B, L), position_ids (B, L), labels (B, L), of which the answers count alone, and attention_mask
    (1, 1, L, L), which is added to the logits: after <bos> and the visual tokens each question and its answer is as if
    it stood there alone. L = 1 + visual_tokens + Q (LENGTH + 1).
    """
    start, step = 1 + visual_tokens, LENGTH + 1
    number = len(questions[0])
    prefix = [VOCABULARY["<bos>"], *[VOCABULARY["<image>"]] * visual_tokens]
    ids = torch.tensor([prefix + [VOCABULARY[word] for q in asked for word in _words(q)] for asked in questions])
    labels = torch.full_like(ids, _IGNORED)
    answers = torch.arange(start + LENGTH, ids.shape[1], step)
    labels[:, answers] = ids[:, answers]
    positions = torch.cat([torch.arange(start), torch.arange(start, start + step).repeat(number)])
    return {
        "input_ids": ids,
        "position_ids": positions.expand_as(ids),
        "labels": labels,
        "attention_mask": _mask(start, step, number),
    }


def _words(question: Question) -> list[str]:
    return [*question.text.split(), question.answer]


def _mask(start: int, step: int, number: int) -> Tensor:
    owner = torch.cat([torch.full((start,), -1), torch.arange(number).repeat_interleave(step)])
    sees = (owner[:, None] == owner) | (owner == -1)
    sees &= torch.ones_like(sees).tril()
    return torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)[None, None]
