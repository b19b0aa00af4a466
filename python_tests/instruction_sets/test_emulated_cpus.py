"""The CPU kernels of every instruction set, on every machine: ARM's by qemu, x86's by Bochs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support import cpu_driver, oracle
from support.backends import CPU, Backend
from support.cpu_driver import BOCHS, NATIVE, NEON
from support.features import RUNNABLE
from support.inputs import (
    BF16,
    DECIDING,
    DTYPES,
    F16,
    F32,
    OPS,
    SMALL,
    Call,
    Shape,
    dtype_name,
    nearly_tied,
    random_attention,
    random_call,
    random_keys,
)
from torch import Tensor

from visionzip_ext import _C

NEEDS_QEMU = pytest.mark.skipif(bool(cpu_driver.missing_for_neon()), reason=cpu_driver.missing_for_neon())
NEEDS_BOCHS = pytest.mark.skipif(bool(cpu_driver.missing_for_x86()), reason=cpu_driver.missing_for_x86())

# The baseline runs natively everywhere, in the operators' suite.
EMULATED = [
    pytest.param(NEON, marks=NEEDS_QEMU, id="neon"),
    *(pytest.param(BOCHS[name], marks=NEEDS_BOCHS, id=name) for name in ("avx2", "avx512", "avx512bf16")),
]
every_emulated = pytest.mark.parametrize("emulated", EMULATED)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
CLS_OR_NOT = pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "mean"])

SHAPES = (
    SMALL,
    Shape(B=2, S=45, C=70, H=3, D=72, k=10, m=6, has_cls=False),  # SigLIP's heads
    Shape(B=1, S=110, C=33, H=2, D=80, k=13, m=37),  # several vectors of targets
    Shape(B=1, S=130, C=16, H=2, D=33, k=20, m=8, has_cls=False),  # several tiles of queries in each chunk
    Shape(B=2, S=45, C=1, H=3, D=1, k=5, m=4),
    Shape(B=2, S=45, C=3, H=2, D=0, k=5, m=4),
    Shape(B=2, S=30, C=7, H=1, D=16, k=10, m=20, has_cls=False),  # nothing to merge
    Shape(B=2, S=150, C=9, H=2, D=33, k=20, m=0, policy="distinct"),
    Shape(B=2, S=70, C=9, H=3, D=16, k=12, m=5, has_cls=False, policy="distinct"),
    Shape(B=2, S=41, C=9, H=2, D=72, k=12, m=5, policy="distinct", keep_cls=False),
    Shape(B=2, S=30, C=9, H=1, D=8, k=6, m=0, keep_cls=False),
)


def one_of(rng: torch.Generator, choices: tuple[Any, ...]) -> Any:
    return choices[int(torch.randint(len(choices), (), generator=rng))]


def a_call(op: str, rng: torch.Generator, shape: Shape, dtype: torch.dtype) -> Call:
    """With any form of attention, with log-sum-exp or without, of either sign, merged in either way."""
    attn, merge = one_of(rng, ("matrix", "rows", "scores")), one_of(rng, ("residual", "mean"))
    call = random_call(op, rng, shape, (dtype,) * 3, attn=attn, merge=merge, lse=one_of(rng, (True, False)))
    if "scale" in call.options and "lse" not in call.tensors:
        return replace(call, options={**call.options, "scale": one_of(rng, (1, -1)) * call.options["scale"]})
    return call


def bits(results: tuple[Tensor, ...]) -> list[Tensor]:
    return [x.contiguous().view(torch.uint8) for x in results]


@every_emulated
@every_dtype
@pytest.mark.parametrize("op", OPS)
def test_results(rng, emulated, op, dtype):
    for shape in SHAPES:
        call = a_call(op, rng, shape, dtype)
        oracle.check(call, call.on(emulated))


@every_emulated
@pytest.mark.parametrize("op", DECIDING)
def test_near_ties(rng, emulated, op):
    for shape in SHAPES[:2]:
        call = nearly_tied(random_call(op, rng, shape))
        oracle.check(call, call.on(emulated))


@every_emulated
@CLS_OR_NOT
@every_dtype
def test_a_nan_in_a_query_keeps_the_first(rng, emulated, dtype, has_cls):
    """It makes every score of its image NaN, also one whose payload a conversion or an exponential might lose."""
    nans = {F32: (0x7FC00000, 0x7FFFFFFF, 0x7F800001), F16: (0x7E00, 0x7FFF, 0x7C01), BF16: (0x7FC0, 0x7FFF, 0x7F81)}
    shape = Shape(B=2 * len(nans[dtype]), S=45, C=0, H=2, D=19, k=7, m=5, has_cls=has_cls)
    call = random_call("select_qk", rng, shape, (dtype,) * 3)
    queries = call.tensors["queries"].contiguous()
    integers = queries.view(torch.int32 if dtype == F32 else torch.int16)
    for b, pattern in enumerate(nans[dtype]):
        integers[b, 1, 0 if has_cls else 38, b] = pattern
    indices, _ = call.with_tensors(queries=queries).on(emulated)
    poisoned = len(nans[dtype])
    assert (indices[:poisoned] == torch.arange(7)).all()
    assert (indices[poisoned:] != torch.arange(7)).any(-1).all()


@every_emulated
@CLS_OR_NOT
@every_dtype
def test_large_logits(rng, emulated, dtype, has_cls):
    """Whose exponentials would be infinite: the key that queries point to takes all attention."""
    shape = Shape(B=2, S=45, C=0, H=2, D=64, k=1 + has_cls, m=5, has_cls=has_cls)
    call = random_call("select_qk", rng, shape, (dtype,) * 3)
    queries = 1000 * call.tensors["keys"][:, :, 39:40].expand(-1, -1, 45, -1)
    indices, _ = call.with_tensors(queries=queries).on(emulated)
    assert (indices == torch.tensor([0, 39][-shape.k :])).all()


@every_emulated
@every_dtype
def test_keys_that_are_no_numbers(rng, emulated, dtype):
    """A similarity of NaN is below every number."""
    shape = Shape(B=3, S=60, C=0, H=2, D=21, k=5, m=9)
    keys = random_keys(rng, shape, dtype).contiguous()
    keys[0, 1, 17:40, 3] = torch.nan
    keys[1, 0, ::3, 20] = torch.nan
    keys[2, :, 30:] = 0
    call = Call("select", {"keys": keys, "attn": random_attention(rng, shape)}, shape.k, shape.m, {"has_cls": True})
    oracle.check(call, call.on(emulated))


@pytest.mark.parametrize("weight", [1 / 2, 1 / 3, 1 / 7])
@pytest.mark.parametrize("dtype", [F16, BF16], ids=dtype_name)
@pytest.mark.parametrize("any_set", [*EMULATED, pytest.param(NATIVE["baseline"], marks=NEEDS_BOCHS, id="baseline")])
def test_every_conversion(any_set, dtype, weight):
    """Every number of 16 bits, widened, multiplied and rounded: the adjoint of a mean, which is one multiplication."""
    tokens = round(1 / weight)
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(1, 1, -1)
    call = Call(
        "merge_backward",
        {"grad": every, "assignment": torch.zeros(1, tokens, dtype=torch.int64)},
        0,
        1,
        {"merge": "mean"},
    )
    (actual,) = call.on(any_set)
    expected = (every.float() * torch.tensor(weight)).to(dtype).expand(1, tokens, -1)
    assert torch.equal(actual.isnan(), expected.isnan())
    numbers = ~expected.isnan()
    assert torch.equal(actual[numbers].view(torch.int16), expected[numbers].view(torch.int16))


@NEEDS_BOCHS
@pytest.mark.parametrize("name", [name for name in RUNNABLE if name in BOCHS])
@every_dtype
def test_the_emulated_cpu_computes_a_real_ones_bits(rng, name, dtype):
    for op in OPS:
        for shape in SHAPES[:4]:
            call = a_call(op, rng, shape, dtype)
            for emulated, real in zip(bits(call.on(BOCHS[name])), bits(call.on(NATIVE[name])), strict=True):
                assert torch.equal(emulated, real), f"{op}, {shape}"


@NEEDS_BOCHS
@every_dtype
def test_the_driver_computes_the_operators_bits(rng, dtype):
    """Both have the same kernels, and call them alike."""
    for op in OPS:
        for shape in SHAPES:
            call = a_call(op, rng, shape, dtype)
            for driver, library in zip(bits(call.on(NATIVE[_C.cpu_isa()])), bits(call.on(CPU)), strict=True):
                assert torch.equal(driver, library), f"{op}, {shape}"


def failure_of(backend: Backend, call: Call) -> str:
    with pytest.raises(AssertionError) as raised:
        call.on(backend)
    return str(raised.value)


@NEEDS_BOCHS
def test_an_instruction_that_the_emulated_cpu_lacks(rng):
    """Whatever the real one has. Tiger Lake has AVX-512, but no products of bfloat16."""
    call = a_call("select_qk", rng, SHAPES[1], BF16)
    tiger_lake = {name: cpu_driver.by_bochs(name, "tigerlake") for name in ("avx512", "avx512bf16")}
    oracle.check(call, call.on(tiger_lake["avx512"]))
    assert "an instruction that it does not have" in failure_of(tiger_lake["avx512bf16"], call)


@NEEDS_BOCHS
def test_memory_that_is_not_there(rng):
    assert "exception 14 " in failure_of(cpu_driver.by_bochs("unknown"), a_call("merge", rng, SMALL, F32))


@NEEDS_QEMU
def test_an_instruction_set_that_was_not_built(rng):
    """The program for ARM has NEON's kernels alone."""
    assert "status -11" in failure_of(cpu_driver.by_qemu("avx2"), a_call("merge", rng, SMALL, F32))
