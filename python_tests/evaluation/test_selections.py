"""Rules that choose patches: each against what it is defined by."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.evaluation import needs_packages

import visionzip_ext
from evaluation import checkpoint, selections
from evaluation.__main__ import KEPT
from evaluation.providers import encode
from evaluation.scenes import split

RULES = (selections.by_place, selections.determinantal, selections.scope)


@pytest.fixture
def inputs(rng) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and keys of two images of 5 x 5 patches."""
    return torch.rand(2, 25, generator=rng).softmax(1), torch.randn(2, 25, 8, generator=rng)


@pytest.mark.parametrize("rule", RULES)
def test_so_many_different_patches_in_order(rule, inputs):
    before = [x.clone() for x in inputs]
    for k in (1, 7, 25):
        patches = rule(*inputs, k)
        assert patches.shape == (2, k)
        assert (patches.diff(dim=1) > 0).all()
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


def test_place_halves_what_is_near(inputs):
    """The second highest score is a neighbour of the highest, and is not chosen."""
    scores = torch.full((1, 25), 0.1)
    scores[0, [12, 13, 20]] = torch.tensor([1.0, 0.9, 0.8])
    assert selections.by_place(scores, inputs[1][:1], 2).tolist() == [[12, 20]]


def test_place_by_hand(inputs):
    scores, keys = inputs
    for image, picked in zip(scores, selections.by_place(scores, keys, 5), strict=True):
        left, chosen = image.clone(), []
        for _ in range(5):
            v = int(left.argmax())
            chosen.append(v)
            for u in range(25):
                square = (u // 5 - v // 5) ** 2 + (u % 5 - v % 5) ** 2
                left[u] *= 1 - torch.exp(torch.tensor(-square / 4.5)) / 2
            left[v] = -1
        assert picked.tolist() == sorted(chosen)


def test_determinantal_takes_the_greatest_determinant_each_time(inputs):
    scores, keys = inputs
    unit = torch.nn.functional.normalize(keys.double(), dim=-1)
    quality = scores.double().sqrt()
    kernels = (unit @ unit.mT + 1e-4 * torch.eye(25)) * quality[:, :, None] * quality[:, None]
    for kernel, picked in zip(kernels, selections.determinantal(scores, keys, 5), strict=True):
        chosen: list[int] = []
        for _ in range(5):
            left = [v for v in range(25) if v not in chosen]
            chosen.append(max(left, key=lambda v: float(torch.linalg.det(kernel[[*chosen, v]][:, [*chosen, v]]))))
        assert picked.tolist() == sorted(chosen)


def test_scope_weighs_coverage_by_the_square_of_the_score(inputs):
    scores, keys = inputs
    unit = torch.nn.functional.normalize(keys, dim=-1)
    for image, cosines, picked in zip(scores, unit @ unit.mT, selections.scope(scores, keys, 5), strict=True):

        def covered(chosen, cosines=cosines):
            return cosines[:, list(chosen)].clamp(min=0).amax(1).sum() if chosen else 0.0

        chosen: list[int] = []
        for _ in range(5):
            left = [v for v in range(25) if v not in chosen]
            chosen.append(max(left, key=lambda v: float((covered([*chosen, v]) - covered(chosen)) * image[v] ** 2)))
        assert picked.tolist() == sorted(chosen)


@pytest.mark.parametrize(("rule", "other"), list(itertools.combinations(RULES, 2)))
def test_rules_differ(rule, other, inputs):
    assert not torch.equal(rule(*inputs, 8), other(*inputs, 8))


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
