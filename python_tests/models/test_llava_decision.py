"""last_zip: what became of each token."""

from __future__ import annotations

import torch
from support import tiny_models as tiny
from support.compressed_llava import K, M
from support.tiny_models import PATCHES, features

import visionzip_ext
from visionzip_ext import last_zip


def test_last_zip_tells_what_became_of_each_token(compressed):
    assert last_zip(compressed) is None
    features(compressed, tiny.pixels(2))
    decision = last_zip(compressed)
    assert decision.grid == (4, 4)
    assert decision.has_cls
    assert (decision.dominant, decision.contextual) == (K, M)
    assert decision.indices.shape == (2, K)
    assert decision.assignment.shape == (2, PATCHES + 1)
    assert torch.equal(decision.indices[:, 0], torch.zeros(2, dtype=torch.int64))
    kept = decision.assignment.gather(1, decision.indices)
    assert torch.equal(kept, torch.arange(K).expand(2, -1))


def test_it_carries_over_to_another_tensor(compressed):
    features(compressed, tiny.pixels(2))
    decision = last_zip(compressed)
    other = torch.randn(2, PATCHES + 1, 3)
    merged = visionzip_ext.merge(other, decision.assignment, decision.dominant, decision.contextual)
    assert torch.equal(merged[:, :K], other.gather(1, decision.indices[..., None].expand(-1, -1, 3)))


def test_supported_models_are_class_names():
    assert "LlavaForConditionalGeneration" in visionzip_ext.supported_models()
