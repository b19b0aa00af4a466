"""The encoder's first layers: computed once an image, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from transformers import Dinov2Model

from evaluation import encoder
from evaluation.first_layers import FirstLayers


@pytest.fixture
def tower() -> Dinov2Model:
    torch.manual_seed(0)
    return Dinov2Model(encoder.config(56)).eval()


@torch.no_grad()
def test_features_are_the_same_and_computed_once(tower, rng):
    pixels = torch.randn(4, 3, 56, 56, generator=rng)
    runs: list[int] = []
    decides: list[int] = []  # the layer whose attention decides: it runs each time
    tower.encoder.layer[-2].attention.register_forward_pre_hook(
        lambda module, args, options: decides.append(1), with_kwargs=True
    )
    tower.encoder.layer[3].mlp.register_forward_pre_hook(lambda module, args: runs.append(len(args[0])))
    expected = tower(pixels, output_hidden_states=True)
    layers = FirstLayers()
    for _ in range(2):
        with layers.remembered(tower):
            first, second = (tower(part, output_hidden_states=True) for part in pixels.split(2))
        actual = torch.cat([first.hidden_states[-2], second.hidden_states[-2]])
        torch.testing.assert_close(actual, expected.hidden_states[-2], rtol=1e-5, atol=1e-5)
        assert runs == [4, 2, 2]
    assert len(decides) == 5
    assert torch.equal(tower(pixels).last_hidden_state, expected.last_hidden_state)
    assert runs == [4, 2, 2, 4]  # afterwards the tower is as it was


@torch.no_grad()
def test_another_image_is_not_mistaken(tower, rng):
    pixels = torch.randn(2, 3, 56, 56, generator=rng)
    other = pixels.clone()
    other[1, 0, 0, 0] += 0.1
    layers = FirstLayers()
    with layers.remembered(tower):
        features, others = (tower(x).last_hidden_state for x in (pixels, other))
    assert torch.equal(features[0], others[0])
    assert not torch.equal(features[1], others[1])
