"""A compressed LLaVA against the recipe on eager attention, and the unmodified model fed the same embeddings."""

from __future__ import annotations

import copy

import pytest
import torch
from support import tiny_models as tiny
from support.compressed_llava import TOKENS, K, M, answer, as_embeddings, lengths_seen_by_language_model, vision_layers
from support.tiny_models import TRANSFORMERS, features, padded, prompt

from visionzip_ext import compress, last_zip, reference


@pytest.mark.parametrize("merge", ["residual", "mean"])
def test_features_follow_the_paper_from_eager_attention(model, merge):
    """The recipe, from attention matrices and keys of an untouched model."""
    untouched = copy.deepcopy(model)
    untouched.model.vision_tower.set_attn_implementation("eager")
    keys = []
    vision_layers(untouched)[-2].self_attn.k_proj.register_forward_hook(lambda *call: keys.append(call[2]))
    with torch.no_grad():
        outputs = untouched.model.vision_tower(tiny.pixels(32), output_attentions=True, output_hidden_states=True)
        per_head = keys[0].unflatten(-1, (4, -1)).transpose(1, 2)
        tokens, indices, assignment = reference.zip(
            outputs.hidden_states[-2], per_head, outputs.attentions[-2], K, M, has_cls=True, merge=merge
        )
        expected = untouched.model.multi_modal_projector(tokens)
        got = features(compress(model, dominant=K, contextual=M, merge=merge), tiny.pixels(32))
    assert torch.equal(last_zip(model).indices, indices)
    assert torch.equal(last_zip(model).assignment, assignment)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_logits_equal_the_unmodified_model_fed_the_same_embeddings(model):
    untouched = copy.deepcopy(model)
    compress(model, dominant=K, contextual=M)
    batch = padded([prompt([1, 5], TOKENS, [7, 8]), prompt([1, 9], TOKENS, [10])]) | {"pixel_values": tiny.pixels(2)}
    with torch.no_grad():
        expected = untouched(**as_embeddings(model, batch)).logits
        assert torch.equal(model(**batch).logits, expected)
        other = model(**(batch | {"pixel_values": tiny.pixels(2, seed=1)})).logits
    assert not torch.allclose(other, expected, atol=0.1), "the answer does not depend on the image"


def test_two_images_in_one_prompt(model):
    untouched = copy.deepcopy(model)
    compress(model, dominant=K, contextual=M)
    rows = [prompt([1, 5], TOKENS, [7], TOKENS, [8]), prompt([1, 9], TOKENS, [10, 11])]
    batch = padded(rows) | {"pixel_values": tiny.pixels(3)}
    seen = lengths_seen_by_language_model(model)
    assert torch.equal(answer(model, **batch), answer(untouched, **as_embeddings(model, batch)))
    assert seen[0] == 2 * TOKENS + 4
    swapped = batch | {"pixel_values": tiny.pixels(3)[[1, 0, 2]]}
    with torch.no_grad():
        assert not torch.equal(model(**swapped).logits[0], model(**batch).logits[0])


def test_beam_search(model):
    untouched = copy.deepcopy(model)
    compress(model, dominant=K, contextual=M)
    batch = padded([prompt([1, 5], TOKENS, [7, 8]), prompt([1, 9], TOKENS, [10])]) | {"pixel_values": tiny.pixels(2)}
    expected = answer(untouched, **as_embeddings(model, batch), num_beams=3)
    assert torch.equal(answer(model, **batch, num_beams=3), expected)


@pytest.mark.skipif(
    TRANSFORMERS < (5, 18), reason="transformers <= 5.17 repeats pixels wrongly: beam search, several images a row"
)
def test_beam_search_with_two_images_in_one_prompt(model):
    untouched = copy.deepcopy(model)
    compress(model, dominant=K, contextual=M)
    rows = [prompt([1, 5], TOKENS, [7], TOKENS, [8]), prompt([1, 9], TOKENS, [10, 11])]
    batch = padded(rows) | {"pixel_values": tiny.pixels(3)}
    expected = answer(untouched, **as_embeddings(model, batch), num_beams=3)
    assert torch.equal(answer(model, **batch, num_beams=3), expected)
