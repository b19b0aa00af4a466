"""Trainer of transformers, with checkpoints that resume, and the accuracy of answers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import EvalPrediction, Trainer
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from visionzip_ext.tune.batches import IGNORED


class PartTrainer(Trainer):
    """Trainer of a part of a model, whose checkpoints hold that part alone, by its parameters' names.

    Trainer writes a checkpoint by `save_pretrained`, which gives most families' weights the names of their published
    checkpoints, and reads it by `load_state_dict`, which knows none of these: it would go on from the first weights.
    """

    def __init__(self, trained: Sequence[str], **options: Any) -> None:
        """Note the names of the parameters that learn; `options` are those of Trainer."""
        super().__init__(**options)
        self._trained = list(trained)

    def trained_weights(self) -> dict[str, Tensor]:
        """What learnt, by name, gathered from all processes: call it in every one; complete in the first."""
        return self._part_of(self.accelerator.get_state_dict(self.model_wrapped))

    def _part_of(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: state[name].detach().cpu().contiguous() for name in self._trained if name in state}

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """In place of Trainer's, which all its ways to a checkpoint call."""
        if not self.args.should_save:
            return
        folder = self.args.output_dir if output_dir is None else output_dir
        os.makedirs(folder, exist_ok=True)
        model: Any = self.accelerator.unwrap_model(self.model)
        weights = self._part_of(model.state_dict() if state_dict is None else state_dict)
        save_file(weights, os.path.join(folder, SAFE_WEIGHTS_NAME), metadata={"format": "pt"})
        torch.save(self.args, os.path.join(folder, TRAINING_ARGS_NAME))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """In place of Trainer's warnings, which what does not learn would cause; it is not in the checkpoint."""
        wrong = sorted({*load_result.unexpected_keys, *(set(self._trained) & set(load_result.missing_keys))})
        if wrong:
            raise RuntimeError(f"the checkpoint is of another model or another --train: {wrong[0]}")


def last_checkpoint(folder: Path) -> str | None:
    """The latest whole checkpoint: Trainer writes its state last. One that was being written is passed over."""
    states = folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")
    steps = {int(state.parent.name.rpartition("-")[2]): state.parent for state in states}
    return str(steps[max(steps)]) if steps else None


def predictions(logits: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """(B, L, words) -> (B, L): the likeliest next token, which is all that accuracy needs of a model's outputs."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """The share of answers that greedy generation would give token by token, and how many there are.

    A token is predicted from the true ones before it; if the answer is generated right up to there, those are the same.
    """
    labels: Any = prediction.label_ids
    predicted: Any = prediction.predictions
    learnt = labels[:, 1:] != IGNORED
    wrong = learnt & (predicted[:, :-1] != labels[:, 1:])
    starts = learnt & ~np.pad(learnt, ((0, 0), (1, 0)))[:, :-1]
    answer = starts.ravel().cumsum()
    count = int(answer[-1])
    return {"accuracy": 1 - len(set(answer[wrong.ravel()])) / count, "answers": count}
