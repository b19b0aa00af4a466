"""A compressed model of every family against the unmodified one."""

from __future__ import annotations

import pytest
import torch
from support.compressed_families import (
    NEW,
    QUESTION,
    answer,
    answer_of_untouched,
    compressed,
    families,
    image_features,
    repeats_pixels_wrongly,
    tiles,
    tokens_of,
    untouched_told,
)
from support.tiny_models import PATCHES, TRANSFORMERS

from visionzip_ext import compress, last_zip

pytestmark = families


def test_logits_equal_the_unmodified_model_fed_the_same_embeddings(family):
    model, processor = compressed(family)
    text = [QUESTION, "USER : <image> a cat"]
    inputs = processor(images=family.images(2), text=text, return_tensors="pt", padding=True)
    untouched, given = untouched_told(family, model, inputs)
    with torch.no_grad():
        expected = untouched(**given).logits
        assert torch.equal(model(**inputs).logits, expected)
        other = processor(images=family.images(2, seed=1), text=text, return_tensors="pt", padding=True)
        assert not torch.allclose(model(**other).logits, expected, atol=0.1), "the image makes no difference"


@pytest.mark.parametrize("early_exit", [True, False])
def test_everything_kept_is_what_the_unmodified_model_sees(family, early_exit):
    """In the model's own order, CLS aside, which it does not see."""
    model, processor = family.model(), family.processor()
    inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
    stock = image_features(model, inputs)
    options = {"dominant": PATCHES + family.has_cls, "contextual": 0, "early_exit": early_exit}
    if family.tiled:
        options["layout"] = "native"
    compress(model, processor, **options)
    inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
    ours = image_features(model, inputs)
    assert len(ours) == sum(tokens_of(inputs)) == len(stock) + family.has_cls * tiles(family, 0)
    cls = [0, *range(PATCHES + 1, PATCHES + tiles(family, 0))] if family.has_cls else []
    others = [row for row in range(len(ours)) if row not in cls]
    torch.testing.assert_close(ours[others], stock, rtol=1e-4, atol=1e-4)


def test_cache_and_no_cache_agree(family):
    model, processor = compressed(family)
    text = [QUESTION, "USER : <image> a cat"]
    inputs = processor(images=family.images(2), text=text, return_tensors="pt", padding=True)
    if family.name not in ("Idefics3", "SmolVLM") or not (5, 0) <= TRANSFORMERS < (5, 9):
        # those versions show them an image in the first forward alone, which without a cache is too little
        assert torch.equal(answer(model, inputs), answer(model, inputs, use_cache=False))
    assert torch.equal(answer(model, inputs), answer_of_untouched(family, model, inputs))


@repeats_pixels_wrongly
def test_beam_search(family):
    model, processor = compressed(family)
    inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
    expected = answer_of_untouched(family, model, inputs, num_beams=3)
    assert torch.equal(answer(model, inputs, num_beams=3), expected)


def test_turns_with_the_cache_kept(family):
    """The encoder is not run again."""
    model, processor = compressed(family)
    inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True}
    said = model.generate(**inputs, **options)
    for question in ("USER : what is the dog", "USER : a cat"):
        turn = processor.tokenizer(question, return_tensors="pt", add_special_tokens=False)["input_ids"]
        ids = torch.cat([said.sequences, turn], 1)
        mask, decision = torch.ones_like(ids), last_zip(model)
        said = model.generate(input_ids=ids, attention_mask=mask, past_key_values=said.past_key_values, **options)
        assert last_zip(model) is decision
        everything = dict(inputs) | {"input_ids": ids, "attention_mask": mask}
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in inputs:
                types = inputs[name]
                everything[name] = torch.nn.functional.pad(types, (0, ids.shape[1] - types.shape[1]))
        assert torch.equal(said.sequences, model.generate(**everything, **options).sequences)
