"""VisionZip as operators: keep the visual tokens that carry the information, merge the rest.

`zip`, `zip_qk`, `select`, `select_qk` and `merge` work on batches of equal images, `zip_packed`, `select_packed` and
`merge_packed` on packed images of different sizes, for which `allocate_budgets` makes token budgets; `compress` and its
like on models of Hugging Face transformers, which is imported only when one of these is used.
"""

from __future__ import annotations

import sys as _sys
from importlib import import_module as _import_module
from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version
from importlib.util import find_spec as _find_spec
from typing import Any as _Any

from visionzip_ext import _library as _library

_library.load()

# Registrations; the schemas must be loaded.
from visionzip_ext._registration import autograd, fake, fallback, pytrees  # noqa: E402, F401
from visionzip_ext.ops import Decision, ZipResult, merge, select, select_qk, zip, zip_qk  # noqa: E402
from visionzip_ext.packed import (  # noqa: E402
    PackedDecision,
    PackedZipResult,
    merge_packed,
    select_packed,
    zip_packed,
)
from visionzip_ext.tokens.allocation import Budgets, allocate_budgets, budget  # noqa: E402

__version__ = "0.1.0"

_FOR_MODELS = (
    "VisionZipDualEncoder",
    "VisionZipEncoder",
    "compress",
    "compress_as_configured",
    "last_zip",
    "mark_tuned",
    "restore",
    "supported_models",
    "visionzip",
)

__all__ = [
    "Budgets",
    "Decision",
    "PackedDecision",
    "PackedZipResult",
    "ZipResult",
    "allocate_budgets",
    "budget",
    "merge",
    "merge_packed",
    "select",
    "select_packed",
    "select_qk",
    "zip",
    "zip_packed",
    "zip_qk",
]
if _find_spec("transformers"):
    __all__ += _FOR_MODELS


def __getattr__(name: str) -> _Any:
    if name not in _FOR_MODELS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        models = _import_module("visionzip_ext.integrations.transformers")
    except ImportError as error:
        # hasattr and inspect expect an AttributeError; `from visionzip_ext import ...` would hide what one says.
        imported = _sys._getframe(1).f_code.co_name == "_handle_fromlist"
        raise (ImportError if imported else AttributeError)(
            f"visionzip_ext.{name} needs transformers >= 4.57, < 6, {_transformers_here(error)}. Install one with "
            "`pip install 'visionzip_ext[transformers]'`."
        ) from error
    return getattr(models, name)


def _transformers_here(error: ImportError) -> str:
    """What stands in the way of those that need transformers."""
    try:
        return f"but {_version('transformers')} is installed, which cannot be used: {error}"
    except _PackageNotFoundError:
        return f"which is not installed: {error}"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
