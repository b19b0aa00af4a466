"""Trains the bench's model from nothing: `python -m evaluation train`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import LlavaForConditionalGeneration, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from evaluation import checkpoint, stages
from evaluation.features import patch_features

SCENES = 2000
_STEPS = (4000, 800, 2500)
"""Of each stage."""
_SAVE_STEPS = 400


def train(output: Path, seed: int, scenes: int = SCENES, effort: float = 1.0) -> LlavaForConditionalGeneration:
    """All three stages, into `output`; goes on where an earlier, interrupted call stopped.

    Args:
        output: folder of the kept model, and of the stages' checkpoints while it is trained.
        seed: of the weights, the questions and the order.
        scenes: of the train split.
        effort: factor of all numbers of steps; for tests.

    Raises:
        MissingPackageError: there is no encoder, or there are no pictures.
    """
    model, processor = checkpoint.build_model(seed), checkpoint.build_processor()
    _prepare_language_model(model, seed)
    steps = [max(1, round(effort * count)) for count in _STEPS]

    words = stages.WordScenes(8 * steps[0], seed)
    _stage(model, output / "1-words", words, stages.collate_words, _language_parts(model), 2.5e-3, seed)

    drawn, features = patch_features(model, processor, "train", scenes)
    projector = [model.model.multi_modal_projector]
    if not (output / "2-patches").exists():
        _prepare_projector(model, features, seed)
    patches = _Repeated(stages.LabelledPatches(drawn, features), 16 * steps[1])
    _stage(model, output / "2-patches", patches, None, projector, 3e-3, seed, batch=16)

    asked = stages.AskedScenes(drawn, features, -(-8 * steps[2] // scenes), seed)
    parts = [*_language_parts(model), *projector]
    _stage(model, output / "3-questions", asked, stages.collate_features, parts, 5e-4, seed)
    checkpoint.save(model, output)
    for stage in ("1-words", "2-patches", "3-questions"):
        shutil.rmtree(output / stage)
    return model


class _Repeated(Dataset):
    """Another dataset's items, over and over."""

    def __init__(self, items: Dataset, count: int) -> None:
        self.items, self.count = items, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Any:
        return self.items[number % len(self.items)]  # type: ignore[arg-type]


def _language_parts(model: LlavaForConditionalGeneration) -> list[nn.Module]:
    return [model.model.language_model, model.lm_head]


def _stage(
    model: LlavaForConditionalGeneration,
    folder: Path,
    items: Dataset,
    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]] | None,
    parts: Sequence[nn.Module],
    learning_rate: float,
    seed: int,
    batch: int = 8,
) -> None:
    """One epoch of `items`, in which only `parts` learn."""
    model.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        num_train_epochs=1,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=50,
        weight_decay=0.01,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        logging_steps=50,
        save_steps=_SAVE_STEPS,
        save_total_limit=1,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        report_to=[],
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(stages.Learner(model), arguments, collate, items)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.exists() else None)
    trainer.save_state()


@torch.no_grad()
def _prepare_language_model(model: LlavaForConditionalGeneration, seed: int) -> None:
    """Attention that begins as similarity of content (Trockman and Kolter 2023): from other weights it never learns."""
    generator = torch.Generator().manual_seed(seed)
    language_model = model.model.language_model
    residual = (2 * len(language_model.layers)) ** 0.5
    for layer in language_model.layers:
        for name, weight in layer.named_parameters():
            if weight.ndim == 2:
                ends_in_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = weight.shape[1] ** -0.5 / (residual if ends_in_residual else 1)
                weight.normal_(0, std, generator=generator)
        layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
    language_model.embed_tokens.weight.normal_(0, 0.1, generator=generator)


@torch.no_grad()
def _prepare_projector(model: LlavaForConditionalGeneration, features: Tensor, seed: int) -> None:
    """As if features had mean 0 and variance 1 in every channel."""
    generator = torch.Generator().manual_seed(seed)
    some = features[:300].float().flatten(0, 1)
    first, second = model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2
    first.weight.normal_(0, first.weight.shape[1] ** -0.5, generator=generator).div_(some.std(0))
    first.bias.copy_(-first.weight @ some.mean(0))
    second.weight.normal_(0, 0.12 * second.weight.shape[1] ** -0.5, generator=generator)
