"""What docs/any_vit.md tells people to write, run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.tiny_encoders import CHANNELS, HEADS, attention_inputs, layers_of, pixels
from support.tiny_models import LAYERS
from torch import nn

import visionzip_ext
from visionzip_ext import VisionZipEncoder

PAGE = Path(__file__).resolve().parents[3] / "docs" / "any_vit.md"
K, M = 6, 2


@pytest.fixture(scope="module")
def page() -> SimpleNamespace:
    """The functions that the page defines."""
    names = {"torch": torch, "visionzip_ext": visionzip_ext}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, names)
    return SimpleNamespace(**names)


@torch.no_grad()
def test_projections_of_their_own(page, clip, rng):
    images = pixels(rng)
    tokens, indices, assignment = page.zip_by_projections(clip, layers_of(clip)[-2], images, HEADS, K, M)
    expected = VisionZipEncoder(clip, K, M)(images)
    assert torch.equal(tokens, expected.tokens)
    assert torch.equal(indices, expected.decision.indices)
    assert torch.equal(assignment, expected.decision.assignment)


@torch.no_grad()
def test_one_projection_for_all_three(page, clip, rng):
    """timm's layout: rows of the weight are queries, keys and values, each head after head."""
    images, attention = pixels(rng), layers_of(clip)[-2].self_attn
    projections = attention.q_proj, attention.k_proj, attention.v_proj
    of_layer = []
    hook = attention.register_forward_pre_hook(
        lambda module, args, kwargs: of_layer.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    expected = attention_inputs(clip, images, LAYERS - 1)
    clip(images)
    hook.remove()
    weight, bias = (torch.cat([getattr(p, name) for p in projections]) for name in ("weight", "bias"))
    timms = SimpleNamespace(num_heads=HEADS, q_norm=nn.Identity(), k_norm=nn.Identity())
    got = page.from_qkv(timms, nn.functional.linear(of_layer[-1], weight, bias))
    torch.testing.assert_close(got, expected)


@torch.no_grad()
def test_no_projections_at_all(page):
    """Attention of these queries and keys is what the module itself gives away."""
    attention, x = nn.MultiheadAttention(CHANNELS, HEADS, batch_first=True), torch.randn(2, 17, CHANNELS)
    nn.init.normal_(attention.in_proj_bias)
    queries, keys = page.from_multihead_attention(attention, x)
    _, expected = attention(x, x, x, average_attn_weights=False)
    logits = queries @ keys.mT * queries.shape[-1] ** -0.5
    torch.testing.assert_close(logits.softmax(-1), expected)
