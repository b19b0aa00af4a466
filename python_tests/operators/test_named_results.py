"""Named results: traced by torch.fx, and saved and loaded as they are."""

from __future__ import annotations

import io

import pytest
import torch
from support.inputs import SMALL, random_call
from support.packed import Mix, random_packed_call

import visionzip_ext

BATCHED = ("zip", "zip_qk", "select", "select_qk")
PACKED = ("zip_packed", "select_packed")


def call_of(op: str, rng: torch.Generator):
    return random_packed_call(op, rng, Mix((20, 30), (5, 6), (2, 3))) if op in PACKED else random_call(op, rng, SMALL)


@pytest.mark.parametrize("op", [*BATCHED, *PACKED])
def test_fx_traces_the_function(rng, op):
    call = call_of(op, rng)
    tensors = dict(call.tensors)

    def function(*given):
        moved = call.with_tensors(**dict(zip(tensors, given, strict=True)))
        return getattr(visionzip_ext, op)(*moved.args, **moved.kwargs)._asdict()

    # torch.fx wants each argument named.
    explicit = {
        2: lambda a, b: function(a, b),
        3: lambda a, b, c: function(a, b, c),
        4: lambda a, b, c, d: function(a, b, c, d),
    }[len(tensors)]
    expected = function(*tensors.values())
    results = torch.fx.symbolic_trace(explicit)(*tensors.values())
    assert results.keys() == expected.keys()
    assert all(torch.equal(results[name], expected[name]) for name in expected)


@pytest.mark.parametrize("op", [*BATCHED, *PACKED])
def test_results_load_with_weights_only(rng, op):
    call = call_of(op, rng)
    result = getattr(visionzip_ext, op)(*call.args, **call.kwargs)
    file = io.BytesIO()
    torch.save(result, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert type(loaded) is type(result)
    assert all(torch.equal(one, other) for one, other in zip(loaded, result, strict=True))
