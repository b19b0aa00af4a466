"""A model of every family gets as many visual tokens as promised, and its processor writes as many placeholders."""

from __future__ import annotations

import inspect

import pytest
import torch
import transformers
from support.compressed_families import NEW, QUESTION, TOKENS, answer, compressed, families, tiles, tokens_of
from support.tiny_models import TRANSFORMERS

from visionzip_ext import last_zip

pytestmark = families


def test_one_image(family):
    model, processor = compressed(family)
    stock = family.processor()(images=family.images(1), text=QUESTION, return_tensors="pt")
    others = stock["input_ids"].shape[1] - sum(tokens_of(stock))
    seen = []
    model.model.get_submodule(family.language_model).register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    inputs = processor(images=family.images(1), text=QUESTION, return_tensors="pt")
    promised = TOKENS * tiles(family, 0)
    assert tokens_of(inputs) == [promised]
    assert answer(model, inputs).shape == (1, NEW)
    assert seen == [promised + others] + [1] * (NEW - 1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_images_of_different_sizes_in_one_batch(family, side):
    model, processor = compressed(family)
    processor.tokenizer.padding_side = side
    text = [QUESTION, "USER : <image> a cat", QUESTION]
    inputs = processor(images=family.images(3), text=text, return_tensors="pt", padding=True)
    assert tokens_of(inputs) == [TOKENS * tiles(family, i) for i in range(3)]
    with torch.no_grad():
        together = model(**inputs).logits
    for row, image in enumerate(family.images(3)):
        alone = processor(images=[image], text=text[row], return_tensors="pt")
        with torch.no_grad():
            expected = model(**alone).logits[0]
        real = inputs["attention_mask"][row].bool()
        torch.testing.assert_close(together[row][real], expected, rtol=1e-3, atol=1e-3)


def test_two_images_in_a_prompt_and_a_prompt_without(family):
    model, processor = compressed(family)
    text = ["USER : <image> what <image> is this", "USER : a dog"]
    batched = family.pictures(2)
    if TRANSFORMERS < (5, 0) and family.name == "LlavaOnevision":
        batched = [batched]  # by prompt
    if family.nested:
        batched = [batched, []]
    inputs = processor(images=batched, text=text, return_tensors="pt", padding=True)
    several = 2 * TOKENS if family.name == "LlavaOnevision" else TOKENS * (tiles(family, 0) + tiles(family, 1))
    if family.name == "LlavaOnevision" and "batch_num_images" in inputs and len(inputs["batch_num_images"]) == 2:
        several = TOKENS * (tiles(family, 0) + tiles(family, 1))
    assert tokens_of(inputs) == [several, 0]
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()


def test_text_alone(family):
    if not family.text_alone:
        pytest.skip("this processor wants an image; give the model token ids")
    model, processor = compressed(family)
    inputs = processor(text=["USER : what is this"], return_tensors="pt")
    untouched = family.model()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, untouched(**inputs).logits)


def test_chat_template(family):
    stock = inspect.signature(transformers.VideoLlavaProcessor.__call__).parameters
    if family.name == "VideoLlava" and "audio" not in stock:
        pytest.skip("in this version the stock Video-LLaVA processor takes no chat template's arguments")
    model, processor = compressed(family)
    content = [{"type": "image", "image": family.pictures(1)[0]}, {"type": "text", "text": "what is this"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert tokens_of(inputs) == [TOKENS * tiles(family, 0)]
    assert answer(model, inputs).shape == (1, NEW)


def test_pipeline(family):
    model, processor = compressed(family)
    pipe = transformers.pipeline(
        "image-text-to-text", model=model, processor=processor, tokenizer=processor.tokenizer, device="cpu"
    )
    result = pipe(images=family.pictures(1)[0], text=QUESTION, max_new_tokens=NEW, return_full_text=False)
    assert result[0]["generated_text"]


def test_a_budget_for_the_whole_image(family):
    if not family.image_budget:
        with pytest.raises(
            ValueError, match='those of all images together: give each its share with budget_per="tile"'
        ):
            compressed(family, dominant=12, contextual=5, budget_per="image")
        return
    model, processor = compressed(family, dominant=12, contextual=4, budget_per="image")
    text = [QUESTION] * 3
    inputs = processor(images=family.images(3), text=text, return_tensors="pt", padding=True)
    assert tokens_of(inputs) == [16] * 3
    with torch.no_grad():
        model(**inputs)
    if family.tiled:
        assert [(d.dominant, d.contextual) for d in last_zip(model)[:3]] == [(4, 1), (4, 1), (4, 2)]
