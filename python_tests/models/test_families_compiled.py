"""A compressed model whose language model, or all of it, goes through torch.compile."""

from __future__ import annotations

import pytest
import torch
from support import tiny_qwen
from support.compressed_families import QUESTION, answer, compressed
from support.tiny_families import FAMILIES


@pytest.fixture(autouse=True)
def nothing_compiled_yet():
    torch.compiler.reset()


def asked(family, processor):
    return processor(images=family.images(2), text=[QUESTION] * 2, return_tensors="pt", padding=True)


@pytest.mark.parametrize("family", [FAMILIES[0], *tiny_qwen.FAMILIES[1:3]], ids=str)
def test_a_compiled_language_model_gives_the_same_answer(family):
    """In one graph; of what is registered on it too."""
    model, processor = compressed(family)
    inputs = asked(family, processor)
    with torch.no_grad():
        expected = model(**inputs).logits
    answered = answer(model, inputs)
    parent, _, name = family.language_model.rpartition(".")
    graph = torch.compile(model.model.get_submodule(family.language_model), backend="eager", fullgraph=True)
    setattr(model.model.get_submodule(parent), name, graph)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, expected)
    assert torch.equal(answer(model, inputs), answered)


@pytest.mark.parametrize("family", [FAMILIES[0], tiny_qwen.FAMILIES[1]], ids=str)
def test_a_model_compiled_as_a_whole_gives_the_same_logits(family):
    """The library's own code breaks the graph, where it takes the sizes of images from tensors."""
    model, processor = compressed(family)
    inputs = asked(family, processor)
    with torch.no_grad():
        expected = model(**inputs).logits
        graph = torch.compile(model, backend="eager")
        torch.testing.assert_close(graph(**inputs).logits, expected)
