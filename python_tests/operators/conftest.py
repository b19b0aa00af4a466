"""A small GPU for the operator suite, so that the host has fewer blocks to execute; kernels/ is for every launch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import emulation


@pytest.fixture(scope="module", autouse=True)
def _small_gpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(emulation.MULTIPROCESSORS_VARIABLE, "4")
        yield
