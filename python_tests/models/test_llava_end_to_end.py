"""Processor, forward and generate of a compressed LLaVA, used as before.

The tests of LLaVA look at the mechanism that all families share. They run on transformers 4.57 and 5; where a version
itself is wrong, the skip says so.
"""

from __future__ import annotations

import pytest
import torch
from support import tiny_models as tiny
from support.compressed_llava import NEW, TOKENS, K, M, answer, lengths_seen_by_language_model, placeholders
from support.tiny_models import PATCHES, features

from visionzip_ext import compress, last_zip, restore


def test_processor_and_generate_as_before(model, processor):
    compress(model, processor, dominant=K, contextual=M)
    seen = lengths_seen_by_language_model(model)
    text = ["USER : <image> what is this ASSISTANT :", "USER : <image> a cat ASSISTANT :"]
    inputs = processor(images=tiny.images(2), text=text, return_tensors="pt", padding=True)
    assert placeholders(inputs) == [TOKENS, TOKENS]
    generated = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert generated.shape == (2, inputs["input_ids"].shape[1] + 3)
    assert seen == [inputs["input_ids"].shape[1], 1, 1]


def test_defaults_are_the_papers_64_tokens(processor):
    large = tiny.vision_config(image_size=140)
    model = compress(tiny.llava(tiny.llava_config(vision_config=large)), tiny.processor(size=140))
    assert features(model, torch.randn(1, 3, 140, 140)).shape[1] == 64
    assert last_zip(model).indices.shape[1] == 54


@pytest.mark.parametrize("strategy", ["default", "full"])
def test_both_select_strategies_make_the_budget(strategy):
    model = tiny.llava(tiny.llava_config(vision_feature_select_strategy=strategy))
    processor = tiny.processor(strategy)
    prompts = {"images": tiny.images(1), "text": "USER : <image> what", "return_tensors": "pt"}
    assert placeholders(processor(**prompts)) == [PATCHES + (strategy == "full")]
    compress(model, processor, dominant=K, contextual=M)
    inputs = processor(**prompts)
    assert placeholders(inputs) == [TOKENS]
    assert answer(model, **inputs).shape == (1, NEW)


def test_chat_template(model, processor):
    compress(model, processor, dominant=K, contextual=M)
    content = [{"type": "image", "image": tiny.images(1)[0]}, {"type": "text", "text": "what is this"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert placeholders(inputs) == [TOKENS]
    assert answer(model, **inputs).shape == (1, NEW)


def test_inner_model_can_be_compressed(model):
    compress(model.model, dominant=K, contextual=M)
    assert features(model, tiny.pixels(1)).shape[1] == TOKENS
    restore(model)
    assert features(model, tiny.pixels(1)).shape[1] == PATCHES


def test_siglip_tower_without_cls():
    model = tiny.llava(tiny.llava_config("siglip", vision_feature_select_strategy="full"))
    processor = tiny.processor("full", has_cls=False)
    compress(model, processor, dominant=K, contextual=M)
    inputs = processor(images=tiny.images(1), text="USER : <image>", return_tensors="pt")
    assert placeholders(inputs) == [TOKENS]
    assert answer(model, **inputs).shape == (1, NEW)
    assert last_zip(model).assignment.shape == (1, PATCHES)
    assert not last_zip(model).has_cls
