"""Strides: any layout gives the bits of the contiguous one, and no input is written to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.inputs import (
    BF16,
    DTYPES,
    F32,
    OPS,
    SMALL,
    Call,
    Shape,
    bytes_of_storage,
    dtype_name,
    laid_out_alike,
    nearly_tied,
    normal,
    random_call,
)
from torch import Tensor


def _padded_rows(x: Tensor) -> Tensor:
    """Rows of a wider tensor: a stride that is not the row's length."""
    wide = x.new_full((*x.shape[:-1], x.shape[-1] + 3), 7)
    wide[..., : x.shape[-1]] = x
    return wide[..., : x.shape[-1]]


def _reversed_dims(x: Tensor) -> Tensor:
    """The last dimension has the longest stride."""
    order = tuple(range(x.ndim))[::-1]
    return x.permute(order).contiguous().permute(order)


def _every_second(x: Tensor) -> Tensor:
    """A last dimension of stride two."""
    return torch.stack([x, torch.full_like(x, 7)], -1).flatten(-2)[..., ::2]


def _offset_by_one(x: Tensor) -> Tensor:
    """Starts one element into its storage, so that no vector load is aligned."""
    storage = x.new_full((x.numel() + 1,), 7)
    storage[1:] = x.flatten()
    return storage[1:].view(x.shape)


def _swapped_middle(x: Tensor) -> Tensor:
    """(B, H, S, D) as the transposed view of (B, S, H, D) that attention produces; other ranks likewise."""
    if x.ndim < 2:
        return x
    return x.transpose(-3, -2).contiguous().transpose(-3, -2) if x.ndim > 2 else x.mT.contiguous().mT


def _sliced_batch(x: Tensor) -> Tensor:
    """Every second image of a larger batch, from the second one on."""
    larger = x.new_full((2 * x.shape[0] + 1, *x.shape[1:]), 7)
    larger[1::2] = x
    return larger[1::2]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "padded rows": _padded_rows,
    "reversed dimensions": _reversed_dims,
    "every second element": _every_second,
    "offset by one": _offset_by_one,
    "swapped middle": _swapped_middle,
    "sliced batch": _sliced_batch,
}
SHAPES = (SMALL, Shape(B=2, S=70, C=64, H=4, D=64, k=9, m=6, has_cls=False))


def contiguous(call: Call) -> Call:
    return call.with_tensors(**{name: x.contiguous() for name, x in call.tensors.items()})


def assert_same(actual, expected) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_every_argument_in_every_layout(bitwise_backend, rng, op, layout, shape, dtype):
    call = random_call(op, rng, shape, (dtype, dtype, dtype), lse=True)
    call = contiguous(nearly_tied(call) if dtype == F32 else call)
    expected = call.on(bitwise_backend)
    laid_out = {name: LAYOUTS[layout](x) for name, x in call.tensors.items()}
    for name, x in laid_out.items():
        assert torch.equal(x, call.tensors[name])
        assert_same(call.with_tensors(**{name: x}).on(bitwise_backend), expected)
    assert_same(call.with_tensors(**laid_out).on(bitwise_backend), expected)


@pytest.mark.parametrize("attn", ["rows", "scores"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_rows_scores_and_mean_keys(bitwise_backend, rng, layout, attn):
    call = contiguous(random_call("select", rng, SMALL, (F32, BF16, BF16), attn=attn, keys="mean"))
    laid_out = {name: LAYOUTS[layout](x) for name, x in call.tensors.items()}
    assert_same(call.with_tensors(**laid_out).on(bitwise_backend), call.on(bitwise_backend))


@pytest.mark.parametrize("op", OPS)
def test_expanded_tensors(bitwise_backend, rng, op):
    """Stride 0: one image for all, and one head for all."""
    call = random_call(op, rng, SMALL, lse=True)
    expanded = {name: x[:1].expand_as(x) for name, x in call.tensors.items()}
    as_one = contiguous(call.with_tensors(**expanded)).on(bitwise_backend)
    assert_same(call.with_tensors(**expanded).on(bitwise_backend), as_one)
    by_head = ("queries", "keys", "attn", "lse")
    expanded = {name: x[:, :1].expand_as(x) if name in by_head else x for name, x in call.tensors.items()}
    as_one = contiguous(call.with_tensors(**expanded)).on(bitwise_backend)
    assert_same(call.with_tensors(**expanded).on(bitwise_backend), as_one)


@pytest.mark.parametrize("offset", range(1, 8))
@pytest.mark.parametrize("op", OPS)
def test_every_alignment(bitwise_backend, rng, op, offset):
    """2-byte elements at every multiple of 2 bytes, with rows as wide as a vector's multiple."""
    shape = Shape(B=2, S=40, C=64, H=2, D=32, k=7, m=5)
    call = contiguous(random_call(op, rng, shape, (BF16, BF16, BF16)))
    moved = {}
    for name, x in call.tensors.items():
        storage = x.new_empty(x.numel() + offset)
        moved[name] = storage[offset:].view(x.shape).copy_(x)
    assert_same(call.with_tensors(**moved).on(bitwise_backend), call.on(bitwise_backend))


@pytest.mark.parametrize("op", OPS)
def test_one_tensor_for_several_arguments(bitwise_backend, rng, op):
    """Queries, keys and hidden may be views of one projection."""
    shape = Shape(B=2, S=40, C=64, H=2, D=32, k=7, m=5)
    call = random_call(op, rng, shape)
    fused = torch.randn(2, 40, 3, 64, generator=rng)
    queries, keys = (fused[:, :, i].view(2, 40, 2, 32).transpose(1, 2) for i in (0, 1))
    views = {"hidden": fused[:, :, 2], "x": fused[:, :, 2], "queries": queries, "keys": keys}
    call = call.with_tensors(**{name: x for name, x in views.items() if name in call.tensors})
    assert_same(call.on(bitwise_backend), contiguous(call).on(bitwise_backend))


@pytest.mark.parametrize("layout", ["contiguous", *LAYOUTS])
@pytest.mark.parametrize("op", OPS)
def test_inputs_are_not_written_to(backend, rng, op, layout):
    call = random_call(op, rng, SMALL, lse=True)
    lay_out = LAYOUTS.get(layout, Tensor.contiguous)
    call = call.with_tensors(**{name: lay_out(x) for name, x in call.tensors.items()}).moved(backend)
    before = {name: bytes_of_storage(x).clone() for name, x in call.tensors.items()}
    call.on(backend)
    for name, x in call.tensors.items():
        assert torch.equal(bytes_of_storage(x), before[name]), name


@pytest.mark.parametrize("op", OPS)
def test_results_are_contiguous(backend, rng, op):
    call = random_call(op, rng, SMALL)
    for x in call.with_tensors(**{name: _reversed_dims(x) for name, x in call.tensors.items()}).on(backend):
        assert x.is_contiguous()


def _expanded(x: Tensor) -> Tensor:
    """One image for all."""
    return x[:1].expand_as(x)


CPU_DEVICE = torch.device("cpu")


@pytest.mark.parametrize("dtype", [F32, BF16, torch.int64], ids=dtype_name)
@pytest.mark.parametrize("lay_out", [*LAYOUTS.values(), _expanded])
def test_a_copy_for_a_device_is_laid_out_alike(rng, lay_out, dtype):
    """Or the layouts here would be those of the CPU alone."""
    x = lay_out(normal(rng, 3, 5, 4, 6, dtype=dtype))
    y = laid_out_alike({"x": x}, CPU_DEVICE)["x"]
    assert (y.dtype, y.shape, y.stride(), y.storage_offset()) == (x.dtype, x.shape, x.stride(), x.storage_offset())
    assert torch.equal(x, y)
    assert torch.equal(bytes_of_storage(x), bytes_of_storage(y))
    assert x.untyped_storage().data_ptr() != y.untyped_storage().data_ptr()


def test_copies_of_views_share_what_the_views_share(rng):
    fused, alone = normal(rng, 2, 40, 3, 64), normal(rng, 2, 40, 64)
    here = {"queries": fused[:, :, 0], "keys": fused[:, :, 1], "hidden": alone, "nothing": alone[:0]}
    there = laid_out_alike(here, CPU_DEVICE)
    places = {name: x.untyped_storage().data_ptr() for name, x in there.items()}
    assert places["queries"] == places["keys"]
    assert places["hidden"] == places["nothing"]
    assert len(set(places.values())) == 2
    assert all(torch.equal(there[name], x) for name, x in here.items())


def test_gradients_flow_through_a_copy(rng):
    x = normal(rng, 3, 4).requires_grad_()
    y = laid_out_alike({"x": x}, CPU_DEVICE)["x"]
    assert x.untyped_storage().data_ptr() != y.untyped_storage().data_ptr()
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
