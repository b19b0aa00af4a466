"""A tiny model of any family that is compressed to K + M tokens a tile, and what tests ask of it."""

from __future__ import annotations

import pytest
import torch
from support.tiny_families import FAMILIES, Family
from support.tiny_models import IMAGE_TOKEN, TRANSFORMERS

from visionzip_ext import compress

K, M = 5, 2
TOKENS = K + M
NEW = 5
QUESTION = "USER : <image> what is this ASSISTANT :"

families = pytest.mark.parametrize("family", FAMILIES, ids=str)
tiled = pytest.mark.parametrize("family", [f for f in FAMILIES if f.tiled], ids=str)
with_video = pytest.mark.parametrize("family", [f for f in FAMILIES if f.video], ids=str)
# whose processor has no stand-in, see tiny_families.VideoProcessor
library_processors = pytest.mark.parametrize("family", [f for f in FAMILIES if not f.video], ids=str)

repeats_pixels_wrongly = pytest.mark.skipif(
    TRANSFORMERS < (5, 20), reason="transformers <= 5.17 repeats pixels wrongly for several beams"
)


def compressed(family: Family, **options):
    """A compressed model and its processor."""
    model, processor = family.model(), family.processor()
    compress(model, processor, **({"dominant": K, "contextual": M} | options))
    return model, processor


def tokens_of(inputs, token: int = IMAGE_TOKEN) -> list[int]:
    return (torch.as_tensor(inputs["input_ids"]) == token).sum(1).tolist()


def tiles(family: Family, number: int) -> int:
    """Of the number-th of `Family.images`."""
    return (3, 3, 5, 3)[number % 4] if family.tiled else 1


def answer(model, inputs, **options) -> torch.Tensor:
    generated = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, pad_token_id=0, **options)
    return generated[:, -NEW:]


def flat(features) -> torch.Tensor:
    """Features of any version's form as (tokens, channels)."""
    features = getattr(features, "pooler_output", features)
    if isinstance(features, tuple) and not isinstance(features[-1], torch.Tensor):  # with a number of frames
        features = features[0]
    if isinstance(features, torch.Tensor):
        features = [features]
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in features])


def image_features(model, inputs) -> torch.Tensor:
    names = [n for n in ("pixel_values", "pixel_values_images", "image_sizes", "batch_num_images") if n in inputs]
    with torch.no_grad():
        return flat(model.model.get_image_features(**{name: inputs[name] for name in names}))


def as_embeddings(model, inputs) -> dict[str, torch.Tensor]:
    """The inputs as `inputs_embeds`: the image features written over the placeholders."""
    ids = inputs["input_ids"]
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(ids)
    places = (ids == IMAGE_TOKEN).unsqueeze(-1)
    return {
        "inputs_embeds": embeddings.masked_scatter(places, image_features(model, inputs)),
        "attention_mask": inputs["attention_mask"],
    }
