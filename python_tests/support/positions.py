"""What tests ask of a model that keeps positions."""

from __future__ import annotations

import pytest
import torch
from support.tiny_families import FAMILIES

from visionzip_ext import compress

K, M = 5, 2
counting_families = pytest.mark.parametrize("family", FAMILIES, ids=str)
"""Those whose language model counts tokens; Qwen-VL's is not among them."""


def kept(family) -> dict[str, str]:
    """The arguments of `compress` that let a family keep positions."""
    return {"positions": "kept"} | ({"layout": "native"} if family.tiled else {})


def positions_seen(model, family) -> list[torch.Tensor]:
    """A list that fills with the position ids of each forward of the language model."""
    seen = []

    def note(module, args, kwargs):
        ids = kwargs.get("position_ids")
        seen.append(torch.empty(0) if ids is None else ids.expand(len(kwargs["inputs_embeds"]), -1))

    model.model.get_submodule(family.language_model).register_forward_pre_hook(note, with_kwargs=True)
    return seen


def model_of(family) -> torch.nn.Module:
    """`Family.model`, whose language model's attention is far from uniform too, so that positions make a difference."""
    model = family.model()
    with torch.no_grad():
        for name, parameter in model.model.get_submodule(family.language_model).named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.mul_(15)
    return model


def compressed(family, **options):
    """A compressed `model_of` and its processor."""
    model, processor = model_of(family), family.processor()
    compress(model, processor, **({"dominant": K, "contextual": M} | options))
    return model, processor
