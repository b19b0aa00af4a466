"""Gradients through a compressed LLaVA."""

from __future__ import annotations

import copy

import pytest
import torch
from support import tiny_models as tiny
from support.compressed_llava import TOKENS, K, M, vision_layers
from support.tiny_models import IMAGE_TOKEN, LAYERS, padded, prompt

from visionzip_ext import compress, last_zip, reference


def loss_of(model) -> torch.Tensor:
    batch = padded([prompt([1, 5], TOKENS, [7, 8]), prompt([1, 9], TOKENS, [10])], "right")
    labels = batch["input_ids"].masked_fill((batch["attention_mask"] == 0) | (batch["input_ids"] == IMAGE_TOKEN), -100)
    return model(**batch, pixel_values=tiny.pixels(2), labels=labels).loss


def gradients_of(model) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def test_gradients_reach_projector_language_model_and_tower(compressed):
    loss_of(compressed.train()).backward()
    reached = gradients_of(compressed)
    wanted = ["multi_modal_projector.linear_1", "language_model.layers.0", "lm_head", "embeddings.patch_embedding"]
    wanted += [f"encoder.layers.{number}.self_attn.v_proj" for number in range(LAYERS - 1)]
    for part in wanted:
        assert any(part in name for name in reached), part
    assert not any(f"encoder.layers.{LAYERS - 1}" in name for name in reached)


def test_gradients_are_those_of_plain_pytorch_with_the_same_decision(model):
    untouched = copy.deepcopy(model)
    batch = padded([prompt([1, 5], TOKENS, [7, 8]), prompt([1, 9], TOKENS, [10])], "right")
    compress(model, dominant=K, contextual=M)
    model(**batch, pixel_values=tiny.pixels(2)).logits.logsumexp(-1).sum().backward()

    hidden = untouched.model.vision_tower(tiny.pixels(2), output_hidden_states=True).hidden_states[-2]
    tokens = reference.merge(hidden, last_zip(model).assignment, K, M, merge="residual")
    embeddings = untouched.get_input_embeddings()(batch["input_ids"])
    image_rows = (batch["input_ids"] == IMAGE_TOKEN).unsqueeze(-1)
    embeddings = embeddings.masked_scatter(image_rows, untouched.model.multi_modal_projector(tokens))
    logits = untouched(inputs_embeds=embeddings, attention_mask=batch["attention_mask"]).logits
    logits.logsumexp(-1).sum().backward()

    expected, got = dict(untouched.named_parameters()), dict(model.named_parameters())
    for name in gradients_of(untouched):
        scale = max(1.0, float(expected[name].grad.abs().max()))  # a key bias has none but rounding error
        torch.testing.assert_close(
            got[name].grad, expected[name].grad, rtol=0, atol=1e-4 * scale, msg=f"gradient of {name}"
        )


def test_projector_alone(compressed):
    compressed.train().requires_grad_(False)
    compressed.model.multi_modal_projector.requires_grad_(True)
    loss_of(compressed).backward()
    assert gradients_of(compressed)
    assert all("multi_modal_projector" in name for name in gradients_of(compressed))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(compressed, use_reentrant):
    compressed.train()
    loss_of(compressed).backward()
    expected = gradients_of(compressed)
    compressed.zero_grad()
    compressed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    attention_calls = []
    vision_layers(compressed)[-2].self_attn.q_proj.register_forward_hook(lambda *call: attention_calls.append(1))
    loss = loss_of(compressed)
    loss.backward()
    got = gradients_of(compressed)
    assert len(attention_calls) == 2, "nothing was recomputed, so nothing was tested"
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, msg=lambda text, name=name: f"{name}: {text}")
    loss_of(compressed)
