"""A tiny LLaVA, its processor, and such a model compressed."""

from __future__ import annotations

import pytest
from support import tiny_models as tiny
from support.compressed_llava import K, M

from visionzip_ext import compress


@pytest.fixture
def model():
    return tiny.llava()


@pytest.fixture
def processor():
    return tiny.processor()


@pytest.fixture
def compressed(model):
    return compress(model, dominant=K, contextual=M)
