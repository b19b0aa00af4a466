"""Queries and keys whose logits are no numbers, or large: NaN of every payload, and exponents of every magnitude."""

from __future__ import annotations

import pytest
import torch
from support.backends import CPU, REFERENCE, Backend
from support.inputs import BF16, DTYPES, F16, F32, Call, Shape, dtype_name, normal, random_call
from support.packed import Mix, random_packed_call
from torch import Tensor

NANS = {
    F32: (0x7FC00000, 0xFFC00000, 0x7FFFE000, 0x7FC02000, 0x7FFFFFFF, 0x7FC00001, 0x7FC000FF, 0xFFC00001, 0x7F800001),
    F16: (0x7E00, 0xFE00, 0x7FFF, 0x7E01, 0xFE7F, 0x7C01),
    BF16: (0x7FC0, 0xFFC0, 0x7FFF, 0x7FC1, 0xFFFF, 0x7F81),
}
"""As bits: quiet and signalling, of both signs, with low bits set and without."""

EVERY_NAN = pytest.mark.parametrize(
    ("dtype", "bits"),
    [(dtype, bits) for dtype, all_bits in NANS.items() for bits in all_bits],
    ids=lambda x: f"{x:#x}" if isinstance(x, int) else dtype_name(x),
)
QK_OPS = ("zip_qk", "select_qk")
CLS_OR_NOT = pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "mean"])


def with_bits(x: Tensor, place: tuple[int, ...], bits: int) -> Tensor:
    """A copy of x, one element of which has these bits."""
    x = x.clone()
    integers = x.view(torch.int32 if x.dtype == F32 else torch.int16)
    integers[place] = bits - (1 << 8 * x.element_size()) if bits >> (8 * x.element_size() - 1) else bits
    return x


def decision(call, backend: Backend) -> tuple[Tensor, Tensor]:
    """(indices, assignment) of a call of a batch."""
    return call.on(backend)[-2:]


@EVERY_NAN
@CLS_OR_NOT
@pytest.mark.parametrize("lse", [False, True], ids=["softmax", "lse"])
@pytest.mark.parametrize("op", QK_OPS)
def test_any_nan_in_a_query_keeps_the_first(backend, rng, op, lse, has_cls, dtype, bits):
    """It makes every score of its image NaN, alone and in a batch; other images do not see it."""
    shape = Shape(B=3, S=45, C=6, H=2, D=19, k=7, m=5, has_cls=has_cls)
    call = random_call(op, rng, shape, (F32, dtype, dtype), lse=lse)
    place = (1, 1, 0 if has_cls else 38, int(torch.randint(19, (), generator=rng)))
    poisoned = call.with_tensors(queries=with_bits(call.tensors["queries"], place, bits))
    indices, assignment = decision(poisoned, backend)
    assert indices[1].tolist() == list(range(7))
    for clean, actual in zip(decision(call, backend), (indices, assignment), strict=True):
        assert torch.equal(actual[[0, 2]], clean[[0, 2]])
    alone = poisoned.with_tensors(**{name: x[1:2] for name, x in poisoned.tensors.items()})
    assert decision(alone, backend)[0][0].tolist() == list(range(7))


@EVERY_NAN
@CLS_OR_NOT
def test_any_nan_in_a_key_keeps_the_first(backend, rng, has_cls, dtype, bits):
    """No query that sees it has a softmax."""
    shape = Shape(B=2, S=45, C=6, H=2, D=19, k=7, m=5, has_cls=has_cls)
    call = random_call("select_qk", rng, shape, (F32, dtype, dtype))
    poisoned = call.with_tensors(keys=with_bits(call.tensors["keys"], (1, 0, 40, 3), bits))
    assert decision(poisoned, backend)[0][1].tolist() == list(range(7))


@CLS_OR_NOT
@pytest.mark.parametrize("of_keys", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("of_queries", DTYPES, ids=dtype_name)
def test_any_conversion_of_a_nan_keeps_the_first(backend, rng, of_queries, of_keys, has_cls):
    """Where the dtypes differ queries are converted, and a NaN's bits depend on where in the tensor it is."""
    shape = Shape(B=3, S=9, C=3, H=2, D=3, k=3, m=0, has_cls=has_cls)
    call = random_call("select_qk", rng, shape, (F32, of_keys, of_keys))
    for d in range(3):
        queries = normal(rng, 3, 2, 9, 3, dtype=of_queries)
        queries[:, 1, 0 if has_cls else 8, d] = torch.nan
        poisoned = call.with_tensors(queries=queries)
        alone = [poisoned.with_tensors(**{name: x[[b]] for name, x in poisoned.tensors.items()}) for b in range(3)]
        for images in (poisoned, *alone):
            assert all(kept == [0, 1, 2] for kept in decision(images, backend)[0].tolist())


@EVERY_NAN
@CLS_OR_NOT
@pytest.mark.parametrize("op", ["zip_packed", "select_packed"])
def test_any_nan_in_a_packed_query_keeps_the_first(backend, rng, op, has_cls, dtype, bits):
    mix = Mix((41, 30, 50), (7, 3, 9), (5, 2, 4), has_cls=has_cls)
    call = random_packed_call(op, rng, mix, (F32, dtype))
    first = mix.lengths[0]
    queries = with_bits(call.tensors["queries"], (first if has_cls else first + 17, 2, 5), bits)
    clean, poisoned = (x.on(backend)[-3] for x in (call, call.with_tensors(queries=queries)))
    assert poisoned[7:10].tolist() == [first, first + 1, first + 2]
    assert torch.equal(poisoned[:7], clean[:7])
    assert torch.equal(poisoned[10:], clean[10:])


def kept_of_single_keys(
    backend: Backend,
    rng: torch.Generator,
    exponent: int,
    sign: int,
    has_cls: bool,
    tokens: int = 45,
    channels: int = 45,
) -> list[int]:
    """What is kept where each of 45 queries sees one key alone, by the square of about 10^exponent; 0 logits otherwise.

    Queries beyond those see all keys alike.
    """
    counts = torch.arange(10)  # of queries that see keys 35 to 44
    sees = (35 + counts.repeat_interleave(counts))[torch.randperm(45, generator=rng)]
    sees = sees.roll(-int((sees == 37).nonzero()[0]))  # which is CLS's
    keys = 10.0**exponent * (1 + 0.8 * torch.rand((), generator=rng)) * torch.eye(tokens, channels)[None, None]
    keys[:, :, 45:] = 0
    options = {"scale": float(sign), "has_cls": has_cls}
    sees = torch.cat([sees, torch.arange(45, tokens)])
    call = Call("select_qk", {"queries": sign * keys[:, :, sees], "keys": keys}, 5, 2, options)
    return decision(call, backend)[0][0].tolist()


SIGNS = pytest.mark.parametrize("sign", [1, -1], ids=["+scale", "-scale"])


@pytest.mark.parametrize("exponent", range(1, 19))
@SIGNS
@CLS_OR_NOT
def test_any_large_logit_takes_all_attention(backend, rng, has_cls, sign, exponent):
    """From 2^31 on two exponents of two that differ at all differ by 128, and one that is rounded is off by as much."""
    expected = [0, 1, 2, 3, 37] if has_cls else [40, 41, 42, 43, 44]
    assert kept_of_single_keys(backend, rng, exponent, sign, has_cls) == expected


@pytest.mark.parametrize("exponent", [4, 5, 18])
@pytest.mark.parametrize(("tokens", "channels"), [(1100, 45), (45, 300)], ids=["two-passes", "sliced"])
@SIGNS
def test_so_it_does_however_columns_are_summed(backend, rng, sign, tokens, channels, exponent):
    """More keys than a GPU's block holds, and more channels."""
    assert kept_of_single_keys(backend, rng, exponent, sign, False, tokens, channels) == [40, 41, 42, 43, 44]


@pytest.mark.parametrize("exact", [REFERENCE, CPU], ids=str)
@SIGNS
@CLS_OR_NOT
def test_the_largest_logit_takes_all_attention(exact, rng, has_cls, sign):
    """Not on a GPU, where exponents of two, the logits times log2(e), have to be float32's."""
    expected = [0, 1, 2, 3, 37] if has_cls else [40, 41, 42, 43, 44]
    assert kept_of_single_keys(exact, rng, 19, sign, has_cls) == expected


@pytest.mark.parametrize("exponent", [-5, -10, -19, -25, -38, -42])
@SIGNS
@CLS_OR_NOT
def test_any_vanishing_logit_changes_nothing(backend, rng, has_cls, sign, exponent):
    """Attention is uniform, and the first tokens are kept; the smallest keys are subnormal numbers."""
    assert kept_of_single_keys(backend, rng, exponent, sign, has_cls) == [0, 1, 2, 3, 4]
