"""Labels and gradients with a compressed model of every family."""

from __future__ import annotations

import pytest
import torch
from support.compressed_families import QUESTION, compressed, families, untouched_told
from support.tiny_models import IMAGE_TOKEN

pytestmark = families


def loss_of(family, model, processor) -> torch.Tensor:
    inputs = processor(
        images=family.images(2), text=[QUESTION, "USER : <image> a cat"], padding=True, return_tensors="pt"
    )
    return model(**(dict(inputs) | {"labels": labels_of(inputs)})).loss


def labels_of(inputs) -> torch.Tensor:
    hidden = (inputs["input_ids"] == IMAGE_TOKEN) | (inputs["attention_mask"] == 0)
    return inputs["input_ids"].masked_fill(hidden, -100)


def test_labels_stay_aligned(family):
    model, processor = compressed(family)
    inputs = processor(images=family.images(2), text=[QUESTION] * 2, padding=True, return_tensors="pt")
    labels = labels_of(inputs)
    untouched, given = untouched_told(family, model, inputs)
    with torch.no_grad():
        loss = model(**(dict(inputs) | {"labels": labels})).loss
        expected = untouched(**given, labels=labels).loss
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_projector_language_model_and_tower(family, checkpointing):
    model, processor = compressed(family)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    loss_of(family, model, processor).backward()
    for part in (family.louder, f"{family.language_model}.", f"{family.towers[0]}."):
        gradients = [p.grad for name, p in model.named_parameters() if part in name and p.grad is not None]
        assert gradients, part
        assert any(gradient.abs().sum() > 0 for gradient in gradients), part
