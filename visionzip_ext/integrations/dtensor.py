"""Sharding of the operators over images, for `torch.distributed.tensor`: `import visionzip_ext.integrations.dtensor`.

DTensors that are sharded in dimension 0, or replicated, give results placed like them, without communication. Other
placements are redistributed to one of these. Packed batches, whose dimension 0 is not images, are replicated.

Not imported with the package: it loads torch.distributed, which most processes do without.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from visionzip_ext._registration.torch_private import schema_of

_BATCHED = ("zip", "zip_qk", "select", "select_qk", "merge", "merge_backward")
_PACKED = ("zip_packed", "select_packed", "merge_packed", "merge_packed_backward")


def _check_keyword(op: str, name: str, spec: Any, first: Any, placements: list[Any]) -> None:
    """Raise RuntimeError where a keyword tensor would have to be redistributed, which torch does not do."""
    if spec.placements != first.placements or any(placement not in placements for placement in spec.placements):
        raise RuntimeError(
            f"visionzip::{op}: {name} is placed as {spec.placements} and the first tensor as {first.placements}; "
            f"expected both alike, of {placements}, because torch redistributes no keyword argument"
        )


def _register(name: str, placements: list[Any]) -> None:
    op = getattr(torch.ops.visionzip, name).default
    schema = schema_of(op)
    tensors = {argument.name for argument in schema.arguments if "Tensor" in str(argument.type)}

    @register_sharding(op)
    def strategies(*args: Any, **kwargs: Any) -> list[tuple[list, list]]:
        keyword_tensors = [key for key, value in kwargs.items() if key in tensors and value is not None]
        for key in keyword_tensors:
            _check_keyword(name, key, kwargs[key], args[0], placements)
        positional = [argument.name in tensors for argument in schema.arguments[: len(args)]]
        is_tensor = positional + [key in keyword_tensors for key in kwargs]
        return [
            ([placement] * len(schema.returns), [placement if tensor else None for tensor in is_tensor])
            for placement in placements
        ]


for _name in _BATCHED:
    _register(_name, [Replicate(), Shard(0)])
for _name in _PACKED:
    _register(_name, [Replicate()])
