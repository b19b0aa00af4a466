"""What tests ask of a tiny LLaVA that is compressed to K + M tokens."""

from __future__ import annotations

import torch
from support.tiny_models import IMAGE_TOKEN, features

K, M = 5, 2
TOKENS = K + M
NEW = 6


def answer(model, **inputs) -> torch.Tensor:
    """The greedily generated tokens alone."""
    generated = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    return generated[:, -NEW:]


def answer_without_cache(model, **inputs) -> torch.Tensor:
    return answer(model, **inputs, use_cache=False)


def as_embeddings(model, batch: dict) -> dict[str, torch.Tensor]:
    """The batch as plain `inputs_embeds`: the image features written over the placeholders."""
    ids = batch["input_ids"]
    embeddings = model.get_input_embeddings()(ids)
    image_features = features(model, batch["pixel_values"]).flatten(0, 1).to(embeddings.dtype)
    embeddings = embeddings.masked_scatter((ids == IMAGE_TOKEN).unsqueeze(-1), image_features)
    return {"inputs_embeds": embeddings, "attention_mask": batch["attention_mask"]}


class Wrapper(torch.nn.Module):
    """As peft's: has a module under a name, and that module's attributes."""

    def __init__(self, name: str, module: torch.nn.Module):
        super().__init__()
        self.wraps = name
        setattr(self, name, module)

    def forward(self, *args, **kwargs):
        return getattr(self, self.wraps)(*args, **kwargs)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__(self.wraps), name)


def as_by_peft(model) -> Wrapper:
    return Wrapper("base_model", Wrapper("model", model))


def vision_layers(model) -> torch.nn.ModuleList:
    tower = model.model.vision_tower
    return getattr(tower, "vision_model", tower).encoder.layers


def lengths_seen_by_language_model(model) -> list[int]:
    """A list that fills with the sequence length of each forward of the language model."""
    seen = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    return seen


def placeholders(inputs) -> list[int]:
    return (torch.as_tensor(inputs["input_ids"]) == IMAGE_TOKEN).sum(1).tolist()
