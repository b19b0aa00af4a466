"""A tiny model of any family that is compressed to K + M tokens a tile, and what tests ask of it."""

from __future__ import annotations

import inspect

import pytest
import torch
from support import compressed_qwen, tiny_qwen
from support.tiny_families import FAMILIES, Family
from support.tiny_models import IMAGE_TOKEN, TRANSFORMERS
from transformers.modeling_outputs import BaseModelOutputWithPooling

from visionzip_ext import compress

K, M = 5, 2
TOKENS = K + M
NEW = 5
_OF_IMAGES = (
    "pixel_values",
    "pixel_values_images",
    "image_sizes",
    "batch_num_images",
    "pixel_attention_mask",
    "image_grid_thw",
)
QUESTION = "USER : <image> what is this ASSISTANT :"

families = pytest.mark.parametrize("family", [*FAMILIES, *tiny_qwen.FAMILIES], ids=str)
tiled = pytest.mark.parametrize("family", [f for f in FAMILIES if f.tiled], ids=str)
with_video = pytest.mark.parametrize("family", [f for f in FAMILIES if f.video], ids=str)
grouped = pytest.mark.parametrize("family", [f for f in FAMILIES if f.grouped], ids=str)
of_fixed_size = pytest.mark.parametrize("family", FAMILIES, ids=str)
saved_processors = pytest.mark.parametrize(
    "family", [*(f for f in FAMILIES if not f.stand_in), *tiny_qwen.FAMILIES], ids=str
)

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
    return family.tiles(number)


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
    names = [name for name in _OF_IMAGES if name in inputs]
    with torch.no_grad():
        return flat(model.model.get_image_features(**{name: inputs[name] for name in names}))


def untouched_told(family: Family, model, inputs) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The unmodified model, and what to give it: the compressed `model`'s features, where its tokens stand."""
    if not family.any_size:
        return family.model(), as_embeddings(model, inputs)
    return compressed_qwen.told_features_and_positions(family, model, inputs), dict(inputs)


def answer_of_untouched(family: Family, model, inputs, **options) -> torch.Tensor:
    """What the unmodified model generates, fed the features of the compressed `model`."""
    if family.any_size:
        untouched, given = untouched_told(family, model, inputs)
        return answer(untouched, given, **options)
    untouched = family.model()
    if "inputs_embeds" in inspect.signature(untouched.prepare_inputs_for_generation).parameters:
        return answer(untouched, as_embeddings(model, inputs), **options)
    features = image_features(model, inputs).unflatten(0, (len(inputs["pixel_values"]), -1))
    result = features if TRANSFORMERS < (5, 0) else BaseModelOutputWithPooling(pooler_output=features)
    untouched.model.get_image_features = lambda pixel_values, **kwargs: result
    return answer(untouched, inputs, **options)


def as_embeddings(model, inputs) -> dict[str, torch.Tensor]:
    """The inputs as `inputs_embeds`: the image features written over the placeholders."""
    ids = inputs["input_ids"]
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(ids)
    places = (ids == IMAGE_TOKEN).unsqueeze(-1)
    return {
        "inputs_embeds": embeddings.masked_scatter(places, image_features(model, inputs)),
        **{name: inputs[name] for name in ("attention_mask", "token_type_ids") if name in inputs},
    }
