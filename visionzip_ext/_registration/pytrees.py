"""What `torch.export.save` writes for the operators' results, so that a saved program returns them again."""

from __future__ import annotations

from torch.utils import _pytree

from visionzip_ext.ops import Decision, ZipResult
from visionzip_ext.packed import PackedDecision, PackedZipResult

# Any named tuple can be exported; to be saved it must have a name of its own. torch has no public function for that.
if hasattr(_pytree, "_register_namedtuple"):
    for _result in (ZipResult, Decision, PackedZipResult, PackedDecision):
        _pytree._register_namedtuple(_result, serialized_type_name=f"visionzip_ext.{_result.__name__}")
