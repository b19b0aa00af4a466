"""Loads the compiled operators: the CPU library always, the CUDA library only under a torch with CUDA."""

from __future__ import annotations

import ctypes
import warnings
from pathlib import Path

import torch

MINIMUM_TORCH = (2, 10)
"""The oldest torch whose stable ABI the libraries call."""

PACKAGE = Path(__file__).resolve().parent
CPU_LIBRARY = PACKAGE / "libvisionzip_cpu.so"
CUDA_LIBRARY = PACKAGE / "libvisionzip_cuda.so"

cuda_library_loaded = False
"""Whether the CUDA kernels are registered."""

cuda_library_error: str | None = None
"""Why the CUDA library could not be loaded, where it should have been."""


def load() -> None:
    """Load the libraries, which registers their operators as ``torch.ops.visionzip.*``.

    Raises ImportError if torch is too old or the CPU library is missing or cannot be loaded.  A CUDA library that
    cannot be loaded is a warning: CUDA tensors then take the reference path.
    """
    global cuda_library_loaded, cuda_library_error
    _require_torch(torch.__version__)
    if not CPU_LIBRARY.exists():
        raise ImportError(
            f"visionzip_ext is not built: {CPU_LIBRARY.name} is missing from {PACKAGE}.  "
            "Build it with `pip install . --no-build-isolation` (or `pip install -e . --no-build-isolation`) in its "
            "source folder; if that has been done, Python may be importing the source folder instead."
        )
    try:
        torch.ops.load_library(str(CPU_LIBRARY))
    except OSError as error:
        raise ImportError(
            f"{CPU_LIBRARY} cannot be loaded under torch {torch.__version__}: {error}.  Build visionzip_ext again."
        ) from error
    # The CUDA library needs symbols that only a torch with CUDA has.
    if torch.version.cuda is None or not CUDA_LIBRARY.exists():
        return
    from visionzip_ext import _C  # which, where nothing is built, would be missed first

    try:
        _require_driver(_driver_version(), _C.build_info()["cuda_version"])
        torch.ops.load_library(str(CUDA_LIBRARY))
    except OSError as error:
        cuda_library_error = str(error)
        warnings.warn(
            f"{CUDA_LIBRARY.name} cannot be loaded, so CUDA tensors take the slower reference path: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
    else:
        cuda_library_loaded = True


def _driver_version() -> int | None:
    """The newest CUDA that the GPU's driver runs, as 13010 for 13.1; None where there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    return version.value if driver.cuDriverGetVersion(ctypes.byref(version)) == 0 else None


def _require_driver(driver: int | None, built: str) -> None:
    """Raise OSError if the driver is too old for the CUDA that the library was built with and brings along."""
    major = int(built.split(".")[0])
    if driver is not None and driver // 1000 < major:
        raise OSError(
            f"it was built with CUDA {built}, which needs a driver for CUDA {major} or later; this one is for CUDA "
            f"{driver // 1000}.{driver % 1000 // 10}.  Update the driver, or build visionzip_ext with that CUDA's nvcc."
        )


def _require_torch(version: str) -> None:
    """Raise ImportError if this version of torch is too old."""
    major, minor = map(int, version.split(".")[:2])
    if (major, minor) < MINIMUM_TORCH:
        wanted = ".".join(map(str, MINIMUM_TORCH))
        raise ImportError(f"visionzip_ext needs torch {wanted} or later; this is torch {version}.")
