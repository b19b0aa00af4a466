"""A compressed processor pickled, and saved."""

from __future__ import annotations

import pickle

from support.compressed_families import QUESTION, TOKENS, compressed, library_processors, tiles, tokens_of

from visionzip_ext import restore

_OUR_SETTING = ("num_additional_image_tokens", "image_seq_length", "image_seq_len")

pytestmark = library_processors


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
