"""A compressed processor pickled, and saved."""

from __future__ import annotations

import pickle

import pytest
import torch
from support.compressed_families import QUESTION, TOKENS, answer, compressed, saved_processors, tiles, tokens_of

from visionzip_ext import compress_as_configured, restore

_OUR_SETTING = ("num_additional_image_tokens", "image_seq_length", "image_seq_len")

pytestmark = saved_processors


def test_processors_can_be_pickled(family):
    """As data loaders do that start their workers anew."""
    _, processor = compressed(family)
    loaded = pickle.loads(pickle.dumps(processor))
    inputs = loaded(images=family.images(1), text=QUESTION, return_tensors="pt")
    assert tokens_of(inputs) == [TOKENS * tiles(family, 0)]
    restore(family.model(), loaded)
    assert type(loaded) is type(family.processor())


def test_a_saved_processor_needs_nothing_of_ours(family, tmp_path):
    _, processor = compressed(family)
    processor.save_pretrained(tmp_path / "ours")
    family.processor().save_pretrained(tmp_path / "stock")
    for path in (tmp_path / "stock").iterdir():
        ours, stock = (tmp_path / "ours" / path.name).read_text(), path.read_text()
        if family.tiled or not any(name in stock for name in _OUR_SETTING):
            assert ours == stock
    assert not [path for path in (tmp_path / "ours").iterdir() if "visionzip" in path.read_text()]


def test_model_and_processor_saved_while_compressed_and_loaded(family, tmp_path):
    model, processor = compressed(family)
    prompts = {"images": family.images(2), "text": [QUESTION] * 2, "return_tensors": "pt", "padding": True}
    family.processor().save_pretrained(tmp_path / "stock")
    type(model)(model.config).save_pretrained(tmp_path / "stock")
    try:
        family.loaded_processor(tmp_path / "stock")
    except ValueError as error:
        pytest.skip(f"this version of transformers does not load the processor that it saved: {error}")
    expected = answer(model, processor(**prompts))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, its_processor = type(model).from_pretrained(tmp_path).eval(), family.loaded_processor(tmp_path)
    loaded.generation_config = model.generation_config
    compress_as_configured(loaded, its_processor)
    inputs = its_processor(**prompts)
    assert tokens_of(inputs) == [TOKENS * tiles(family, number) for number in range(2)]
    assert torch.equal(answer(loaded, inputs), expected)
    restore(loaded, its_processor)
    inputs, stock = its_processor(**prompts), family.processor()(**prompts)
    assert torch.equal(inputs["input_ids"], stock["input_ids"])
    assert torch.equal(answer(loaded, inputs), answer(family.model(), stock))
