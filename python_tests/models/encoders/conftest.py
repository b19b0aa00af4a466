"""Vision encoders of every kind."""

from __future__ import annotations

import pytest
from support import tiny_encoders
from torch import nn


@pytest.fixture(params=tiny_encoders.KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def encoder(kind) -> nn.Module:
    return tiny_encoders.encoder(kind)


@pytest.fixture
def clip() -> nn.Module:
    return tiny_encoders.encoder("clip")
