"""What several of the tools' tests read."""

import pytest

from tools.kernel_report import library
from visionzip_ext import _C, _library

BUILD = _C.build_info()


@pytest.fixture(scope="session")
def built() -> library.Library:
    """The CUDA library as nvcc compiled it, read once."""
    if not BUILD["cuda"]:
        pytest.skip(f"no CUDA library: {BUILD['cuda_missing_reason']}")
    return library.read(_library.CUDA_LIBRARY)
