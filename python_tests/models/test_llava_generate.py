"""Batches, padding, text without images, and the cache, with a compressed LLaVA."""

from __future__ import annotations

import copy

import pytest
import torch
from support import tiny_models as tiny
from support.compressed_llava import TOKENS, K, M, answer, answer_without_cache, as_embeddings, vision_layers
from support.tiny_models import PATCHES, padded, prompt

from visionzip_ext import compress, last_zip

ROWS = (prompt([1, 5, 6, 7, 8], TOKENS, [7, 8]), prompt([1, 9], TOKENS, [10]))


def test_left_padding_generates_as_each_row_alone(compressed):
    pixels = tiny.pixels(2)
    together = answer(compressed, **padded(list(ROWS), "left"), pixel_values=pixels)
    for i, row in enumerate(ROWS):
        assert torch.equal(together[i], answer(compressed, **padded([row]), pixel_values=pixels[i : i + 1])[0])


def test_right_padding_gives_the_logits_of_each_row_alone(compressed):
    pixels = tiny.pixels(2)
    with torch.no_grad():
        together = compressed(**padded(list(ROWS), "right"), pixel_values=pixels).logits
        for i, row in enumerate(ROWS):
            alone = compressed(**padded([row]), pixel_values=pixels[i : i + 1]).logits[0]
            torch.testing.assert_close(together[i, : len(row)], alone, rtol=1e-4, atol=1e-4)


def test_text_only_prompt_as_the_unmodified_model(model):
    untouched = copy.deepcopy(model)
    compress(model, dominant=K, contextual=M)
    text = padded([[1, 5, 6, 7]])
    assert torch.equal(answer(model, **text), answer(untouched, **text))


def test_text_only_row_beside_an_image(compressed):
    rows, pixels = [ROWS[0], [1, 11, 12]], tiny.pixels(1)
    together = answer(compressed, **padded(rows), pixel_values=pixels)
    assert torch.equal(together[0], answer(compressed, **padded(rows[:1]), pixel_values=pixels)[0])
    assert torch.equal(together[1], answer(compressed, **padded(rows[1:]))[0])


def test_too_many_placeholders_are_refused(compressed):
    with pytest.raises(ValueError, match="Image features and image tokens do not match"):
        compressed(**padded([prompt([1], PATCHES, [5])]), pixel_values=tiny.pixels(1))


def test_cached_generation_equals_uncached(compressed):
    batch = padded([prompt([1, 5], TOKENS, [7, 8])]) | {"pixel_values": tiny.pixels(1)}
    # a model without a cache has to see the image in every forward, which generate does not arrange
    uncached = answer_without_cache(compressed, **as_embeddings(compressed, batch))
    assert torch.equal(answer(compressed, **batch), uncached)


def test_second_turn_with_the_kept_cache(compressed):
    """Same tokens as reading the whole conversation anew, and the encoder is not run again."""
    pixels = tiny.pixels(1)
    first = compressed.generate(
        **padded([prompt([1, 5], TOKENS, [7, 8])]),
        pixel_values=pixels,
        max_new_tokens=4,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
    )
    conversation = torch.cat([first.sequences, torch.tensor([[21, 22, 23]])], 1)
    turn = {"input_ids": conversation, "attention_mask": torch.ones_like(conversation)}
    runs = []
    compressed.model.vision_tower.register_forward_pre_hook(lambda *call: runs.append(1))
    anew = answer(compressed, **turn, pixel_values=pixels)
    assert runs == [1]
    kept = answer(compressed, **turn, past_key_values=first.past_key_values)
    assert runs == [1], "the vision tower ran again"
    assert torch.equal(kept, anew)


@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 2}], ids=str)
def test_other_ways_to_generate_give_the_same_answer(compressed, options):
    batch = padded([prompt([1, 5], TOKENS, [7, 8, 7, 8, 7])]) | {"pixel_values": tiny.pixels(1)}
    batch["eos_token_id"] = 3  # prompt lookup of transformers 4 needs one
    assert torch.equal(answer(compressed, **batch, **options), answer(compressed, **batch))


def test_dropout_of_attention_has_no_part_in_the_decision(compressed):
    """Tokens are scored from queries and keys, of which training takes nothing away."""
    batch = padded([ROWS[0]]) | {"pixel_values": tiny.pixels(1)}
    logits = compressed(**batch).logits
    decision = last_zip(compressed)
    attention = vision_layers(compressed)[compressed.config.vision_feature_layer].self_attn
    attention.dropout = 0.9
    assert not torch.equal(compressed.train()(**batch).logits, logits)
    assert torch.equal(last_zip(compressed).assignment, decision.assignment)
