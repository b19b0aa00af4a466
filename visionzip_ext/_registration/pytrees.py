"""How the operators' results are saved: by `torch.export.save`, and by `torch.save` for `weights_only=True`."""

from __future__ import annotations

import torch

from visionzip_ext._registration.torch_private import name_for_export
from visionzip_ext.ops import Decision, ZipResult
from visionzip_ext.packed import PackedDecision, PackedZipResult

_RESULTS = (ZipResult, Decision, PackedZipResult, PackedDecision)

for _result in _RESULTS:
    name_for_export(_result, f"visionzip_ext.{_result.__name__}")
torch.serialization.add_safe_globals(list(_RESULTS))
