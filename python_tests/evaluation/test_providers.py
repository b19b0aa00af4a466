"""What providers choose by: the scores and keys of the layer that VisionZip reads."""

from __future__ import annotations

import torch
from support.evaluation import needs_packages

import visionzip_ext
from evaluation import checkpoint
from evaluation.__main__ import KEPT
from evaluation.providers import encode
from evaluation.scenes import split


@needs_packages
def test_scores_are_those_that_visionzip_chooses_by():
    """The highest are its dominant tokens, beside CLS."""
    model, processor = checkpoint.load(KEPT)
    images = [scene.image for scene in split("validation").scenes(3)]
    read = processor(images=images, text=["<image>"] * 3, return_tensors="pt")
    with torch.inference_mode():
        encoded = encode(model, read["pixel_values"])
        features = model.model.vision_tower(read["pixel_values"], output_hidden_states=True).hidden_states[-2]
        visionzip_ext.compress(model, processor, dominant=9, contextual=0)
        model(**processor(images=images, text=["<image>"] * 3, return_tensors="pt"))
    assert torch.equal(encoded.features, features[:, 1:])
    kept = visionzip_ext.last_zip(model).indices[:, 1:] - 1
    assert torch.equal(encoded.scores.topk(8).indices.sort(1).values, kept.sort(1).values)


@needs_packages
def test_keys_are_those_that_visionzip_compares_by():
    """The policy distinct on them chooses what `compress` does."""
    model, processor = checkpoint.load(KEPT)
    images = [scene.image for scene in split("validation").scenes(3)]
    with torch.inference_mode():
        encoded = encode(model, processor(images=images, text=["<image>"] * 3, return_tensors="pt")["pixel_values"])
        visionzip_ext.compress(model, processor, policy="distinct", dominant=16, contextual=0, keep_cls=False)
        model(**processor(images=images, text=["<image>"] * 3, return_tensors="pt"))
    decision = visionzip_ext.select(encoded.keys, encoded.scores, 16, 0, has_cls=False, policy="distinct")
    assert torch.equal(decision.indices, visionzip_ext.last_zip(model).indices - 1)
