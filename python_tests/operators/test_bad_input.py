"""Every bad input raises RuntimeError, with the same words on every way in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import bad_input
from support.bad_input import FLOATS, BadCall, changed
from support.inputs import CARRYING, DECIDING, OPS, ZIPPING, Call, Shape, dtype_name, random_call

import visionzip_ext
from visionzip_ext._registration.checks import check

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")

GOOD = Shape(B=2, S=10, C=6, H=2, D=4, k=3, m=2)
WRONG_DTYPES = [
    *(torch.float64, torch.complex32, torch.complex64, torch.complex128, torch.bool),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
]
QK = ("zip_qk", "select_qk")
GIVEN = ("zip", "select")


class Bad(BadCall):
    """Of an operator on a batch."""

    def call(self) -> Call:
        call = random_call(self.op, torch.Generator().manual_seed(0), GOOD, lse=True)
        for name, value in self.change.items():
            if name in ("k", "m"):
                call = replace(call, **{name: value})
            elif name in call.tensors:
                call = call.with_tensors(**{name: changed(call.tensors[name], value)})
            else:
                call.options[name] = value
        return call


def _misfit(name: str, shape: str, base: str, base_shape: str, expected: str) -> str:
    return f"{name} has shape {shape}, which does not fit {base} of shape {base_shape}; expected {expected}"


def _ranks() -> list[Bad]:
    keys, attn = "(B, S, D) or (B, H, S, D)", "(B, S), (B, H, S) or (B, H, S, S)"
    split = "unflatten(2, (H, D)).transpose(1, 2) of (B, S, H * D)"
    rows = []
    for op in ZIPPING:
        rows += [
            Bad(op, {"hidden": (10, 6)}, "hidden has shape (10, 6); expected (B, S, C)"),
            Bad(op, {"hidden": (2, 10, 3, 2)}, "hidden has shape (2, 10, 3, 2); expected (B, S, C)"),
            Bad(op, {"hidden": ()}, "hidden has shape (); expected (B, S, C)"),
        ]
    for op in GIVEN:
        rows += [
            Bad(op, {"keys": (2, 10)}, f"keys has shape (2, 10); expected {keys}"),
            Bad(op, {"keys": (1, 2, 2, 10, 4)}, f"keys has shape (1, 2, 2, 10, 4); expected {keys}"),
            Bad(op, {"attn": (10,)}, f"attn has shape (10); expected {attn}"),
            Bad(op, {"attn": (2, 2, 10, 10, 1)}, f"attn has shape (2, 2, 10, 10, 1); expected {attn}"),
        ]
    for op in QK:
        rows += [
            Bad(op, {"queries": (2, 10, 8)}, f"queries has shape (2, 10, 8); expected (B, H, S, D): queries.{split}"),
            Bad(op, {"keys": (2, 10, 8)}, f"keys has shape (2, 10, 8); expected (B, H, S, D): keys.{split}"),
            Bad(op, {"queries": (10, 8)}, "queries has shape (10, 8); expected (B, H, S, D)"),
            Bad(op, {"keys": (1, 2, 2, 10, 4)}, "keys has shape (1, 2, 2, 10, 4); expected (B, H, S, D)"),
            Bad(op, {"lse": (2, 10)}, "lse has shape (2, 10); expected (B, H, S)"),
            Bad(op, {"lse": (2, 2, 10, 1)}, "lse has shape (2, 2, 10, 1); expected (B, H, S)"),
        ]
    for op, name in (("merge", "x"), ("merge_backward", "grad")):
        rows += [
            Bad(op, {name: (2,)}, f"{name} has shape (2); expected (B, S, *)"),
            Bad(op, {name: ()}, f"{name} has shape (); expected (B, S, *)"),
            Bad(op, {"assignment": (20,)}, "assignment has shape (20); expected (B, S)"),
            Bad(op, {"assignment": (2, 10, 1)}, "assignment has shape (2, 10, 1); expected (B, S)"),
        ]
    return rows


def _misfits() -> list[Bad]:
    rows = []
    for op, base, base_shape in (("zip", "hidden", "(2, 10, 6)"), ("select", "keys", "(2, 2, 10, 4)")):
        for shape, expected in (
            ((3, 10), "(2, 10)"),
            ((2, 11), "(2, 10)"),
            ((1, 2, 10), "(2, H, 10)"),
            ((2, 2, 9), "(2, H, 10)"),
            ((2, 0, 10), "(2, H, 10)"),
            ((2, 2, 10, 9), "(2, H, 10, 10)"),
            ((2, 2, 1, 10), "(2, H, 10, 10)"),
            ((1, 2, 10, 10), "(2, H, 10, 10)"),
        ):
            rows.append(Bad(op, {"attn": shape}, _misfit("attn", str(shape), base, base_shape, expected)))
    for shape, expected in (
        ((3, 10, 4), "(2, 10, D)"),
        ((2, 11, 4), "(2, 10, D)"),
        ((1, 2, 10, 4), "(2, H, 10, D)"),
        ((2, 10, 2, 4), "(2, H, 10, D): keys.transpose(1, 2) fits"),
        ((2, 0, 10, 4), "(2, H, 10, D)"),
    ):
        rows.append(Bad("zip", {"keys": shape}, _misfit("keys", str(shape), "hidden", "(2, 10, 6)", expected)))
    keys = _misfit("keys", "(2, 0, 10, 4)", "keys", "(2, 0, 10, 4)", "(2, H, 10, D)")
    rows.append(Bad("select", {"keys": (2, 0, 10, 4)}, keys))
    for shape in ((3, 2, 10, 4), (2, 2, 11, 4), (2, 0, 10, 4)):
        words = _misfit("queries", str(shape), "hidden", "(2, 10, 6)", "(2, H, 10, D)")
        rows.append(Bad("zip_qk", {"queries": shape}, words))
    words = _misfit("queries", "(2, 10, 2, 4)", "hidden", "(2, 10, 6)", "(2, H, 10, D): queries.transpose(1, 2) fits")
    rows.append(Bad("zip_qk", {"queries": (2, 10, 2, 4)}, words))
    for op in QK:
        base = ("queries", "(2, 2, 10, 4)")
        keys = _misfit("keys", "(2, 10, 2, 4)", *base, "(2, 2, 10, 4): keys.transpose(1, 2) fits")
        lse = _misfit("lse", "(2, 10, 2)", *base, "(2, 2, 10): lse.transpose(1, 2) fits")
        rows += [Bad(op, {"keys": (2, 10, 2, 4)}, keys), Bad(op, {"lse": (2, 10, 2)}, lse)]
        for shape in ((3, 2, 10, 4), (2, 1, 10, 4), (2, 2, 9, 4), (2, 2, 10, 5)):
            words = _misfit("keys", str(shape), "queries", "(2, 2, 10, 4)", "(2, 2, 10, 4)")
            rows.append(Bad(op, {"keys": shape}, words))
        for shape in ((1, 2, 10), (2, 3, 10), (2, 2, 1)):
            words = _misfit("lse", str(shape), "queries", "(2, 2, 10, 4)", "(2, 2, 10)")
            rows.append(Bad(op, {"lse": shape}, words))
    for shape in ((1, 10), (2, 9)):
        words = _misfit("assignment", str(shape), "x", "(2, 10, 6)", "(2, 10)")
        rows.append(Bad("merge", {"assignment": shape}, words))
    for shape in ((1, 5, 6), (2, 10, 6)):
        words = _misfit("grad", str(shape), "assignment", "(2, 10)", "(2, 5, 6)")
        rows.append(Bad("merge_backward", {"grad": shape}, words))
    return rows


def _dtypes() -> list[Bad]:
    rows = []
    for dtype in WRONG_DTYPES:
        name = dtype_name(dtype)
        rows.append(Bad("zip", {"hidden": dtype}, f"hidden has dtype {name}; expected {FLOATS}"))
        if dtype != torch.int64:
            rows.append(Bad("merge", {"assignment": dtype}, f"assignment has dtype {name}; expected int64"))
    for dtype, name in ((torch.float64, "float64"), (torch.int64, "int64")):
        for op, tensor in (
            ("zip", "keys"),
            ("zip", "attn"),
            ("zip_qk", "hidden"),
            ("zip_qk", "queries"),
            ("zip_qk", "keys"),
            ("select", "keys"),
            ("select", "attn"),
            ("select_qk", "queries"),
            ("select_qk", "keys"),
            ("merge", "x"),
            ("merge_backward", "grad"),
        ):
            rows.append(Bad(op, {tensor: dtype}, f"{tensor} has dtype {name}; expected {FLOATS}"))
    for dtype, name in ((torch.bfloat16, "bfloat16"), (torch.float64, "float64")):
        rows += [Bad(op, {"lse": dtype}, f"lse has dtype {name}; expected float32") for op in QK]
    rows.append(Bad("merge_backward", {"assignment": torch.int32}, "assignment has dtype int32; expected int64"))
    return rows


def _devices() -> list[Bad]:
    def words(name: str, first: str) -> str:
        return f"{name} is on meta but {first} is on cpu; expected all tensors on the same device"

    first_and_others = {
        "zip": ("hidden", "keys", "attn"),
        "zip_qk": ("hidden", "queries", "keys", "lse"),
        "select": ("keys", "attn"),
        "select_qk": ("queries", "keys", "lse"),
        "merge": ("x", "assignment"),
        "merge_backward": ("grad", "assignment"),
    }
    return [
        Bad(op, {other: torch.device("meta")}, words(other, first))
        for op, (first, *others) in first_and_others.items()
        for other in others
    ]


def _budgets() -> list[Bad]:
    def words(k: int, m: int, least: int, tokens: int = 10) -> str:
        cls = " (CLS is one of the k)" if least else ""
        fits = f"expected k >= {least}, m >= 0 and 1 <= k + m <= {tokens}{cls}"
        return f"k = {k} and m = {m} do not fit S = {tokens} tokens; {fits}"

    rows = []
    for op in DECIDING + ZIPPING:
        rows += [
            Bad(op, {"k": k, "m": m}, words(k, m, 1))
            for k, m in ((0, 2), (-1, 2), (3, -1), (9, 2), (11, 0), (3, 2**40))
        ]
        rows += [
            Bad(op, {"k": k, "m": m, "has_cls": False}, words(k, m, 0))
            for k, m in ((-1, 2), (0, 0), (3, -1), (0, 11), (6, 5))
        ]
    rows += [Bad("merge", {"k": k, "m": m}, words(k, m, 0)) for k, m in ((-1, 2), (0, 0), (3, -1), (6, 5))]
    rows += [Bad("merge_backward", {"k": k, "m": m}, words(k, m, 0)) for k, m in ((-1, 2), (0, 0), (3, -1), (6, 5))]
    # Nothing but the budget shows that all of them are (B, S, H, D).
    swapped = {"queries": (2, 10, 2, 4), "keys": (2, 10, 2, 4), "lse": (2, 10, 2)}
    hint = ": queries and keys are (B, H, S, D); transpose(1, 2) makes them of (B, S, H, D)"
    rows.append(Bad("select_qk", swapped, words(3, 2, 1, tokens=2) + hint))
    empty = {"hidden": (2, 0, 6), "keys": (2, 0, 4), "attn": (2, 0)}
    rows.append(Bad("zip", empty, words(3, 2, 1, tokens=0)))
    return rows


def _words() -> list[Bad]:
    return [
        Bad(op, {"merge": word}, f'merge is "{word}"; expected "residual" or "mean"')
        for op in ZIPPING + CARRYING
        for word in ("sum", "", "Residual")
    ]


TABLE = _ranks() + _misfits() + _dtypes() + _devices() + _budgets() + _words()
ON_ONE_DEVICE = [bad for bad in TABLE if bad not in _devices()]


@pytest.mark.parametrize("bad", [bad for bad in TABLE if bad.op != "merge_backward"], ids=str)
def test_function(bad):
    bad.raises(bad_input.function)


@pytest.mark.parametrize("bad", TABLE, ids=str)
def test_torch_ops(bad):
    bad.raises(bad_input.torch_ops)


@pytest.mark.parametrize("bad", ON_ONE_DEVICE, ids=str)
def test_dispatched_backend(dispatched_backend, bad):
    """The compiled kernel itself, and any later one."""
    bad.raises(lambda call: call.on(dispatched_backend))


@pytest.mark.parametrize("bad", TABLE, ids=str)
def test_checks_of_fake_tensors_and_reference(bad):
    bad.raises(lambda call: check(call.op, call.args, call.kwargs))


@pytest.mark.parametrize("bad", TABLE, ids=str)
def test_fallback(bad):
    bad.raises(bad_input.fallback)


@pytest.mark.parametrize("bad", ON_ONE_DEVICE, ids=str)
def test_meta_tensors(bad):
    bad.raises(bad_input.meta_tensors)


@pytest.mark.parametrize("bad", ON_ONE_DEVICE, ids=str)
def test_fake_tensors(bad):
    bad.raises(bad_input.fake_tensors)


@pytest.mark.parametrize("bad", TABLE, ids=str)
def test_compiled_graph(bad):
    bad.raises(bad_input.compiled_graph, exactly=False)


@pytest.mark.parametrize("op", OPS)
def test_the_good_call_is_good(dispatched_backend, op):
    """The table's rows fail for what they changed and for nothing else."""
    Bad(op, {}, "").call().on(dispatched_backend)


@pytest.mark.parametrize("op", ZIPPING)
def test_inputs_that_require_gradients_are_checked_too(op):
    call = Bad(op, {"k": 11, "m": 0}, "").call()
    call = call.with_tensors(hidden=call.tensors["hidden"].requires_grad_())
    with pytest.raises(RuntimeError, match=f"visionzip::{op}: k = 11 and m = 0 do not fit S = 10 tokens"):
        bad_input.torch_ops(call)


@pytest.mark.parametrize(("k", "m"), [(2**63 - 1, 2**63 - 1), (2**63 - 1, 1), (-(2**63), 2**63 - 1)])
@pytest.mark.parametrize("op", OPS)
def test_a_sum_that_overflows(dispatched_backend, op, k, m):
    """k + m wraps around to a small number in 64 bits."""
    call = replace(Bad(op, {}, "").call(), k=k, m=m)
    with pytest.raises(RuntimeError, match=f"visionzip::{op}: k = {k} and m = {m} do not fit S = 10 tokens"):
        call.on(dispatched_backend)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", bad_input.NO_STRIDED_TENSORS)
@pytest.mark.parametrize("op", [op for op in OPS if op != "merge_backward"])
def test_no_strided_tensor(rng, op, kind):
    bad_input.check_no_strided_tensor(random_call(op, rng, GOOD, lse=True), kind, ("lse",))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("kind", bad_input.REACHING_THE_OPERATOR)
@pytest.mark.parametrize("op", OPS)
def test_no_strided_tensor_through_torch_ops(rng, op, kind):
    call = random_call(op, rng, GOOD, lse=True)
    bad_input.check_no_strided_tensor(call, kind, ("lse",), bad_input.torch_ops)


@pytest.mark.parametrize("op", OPS)
def test_no_tensor_at_all_through_torch_ops(rng, op):
    call = random_call(op, rng, GOOD).with_each(lambda x: None)
    first = next(iter(call.tensors))
    with pytest.raises(RuntimeError, match=f"visionzip::{op}: {first} is None; expected a strided tensor"):
        bad_input.torch_ops(call)


@pytest.mark.parametrize("made", bad_input.INTEGERS.values(), ids=bad_input.INTEGERS)
@pytest.mark.parametrize("op", [op for op in OPS if op != "merge_backward"])
def test_k_and_m_are_integers_of_any_kind(rng, op, made):
    call = random_call(op, rng, GOOD)
    same = bad_input.function(replace(call, k=made(call.k), m=made(call.m)))
    torch.testing.assert_close(same, bad_input.function(call), rtol=0, atol=0)


@pytest.mark.parametrize(("number", "words"), bad_input.NO_INTEGERS, ids=repr)
@pytest.mark.parametrize("name", ["k", "m"])
@pytest.mark.parametrize("op", [op for op in OPS if op != "merge_backward"])
def test_k_and_m_are_integers(rng, op, name, number, words):
    with pytest.raises(RuntimeError) as caught:
        bad_input.function(replace(random_call(op, rng, GOOD), **{name: number}))
    assert str(caught.value) == f"visionzip::{op}: {name} is {words}"


@pytest.mark.parametrize("has_cls", [None, 1, "yes"])
@pytest.mark.parametrize("op", DECIDING + ZIPPING)
def test_has_cls_is_true_or_false(rng, op, has_cls):
    call = random_call(op, rng, GOOD)
    call.options["has_cls"] = has_cls
    with pytest.raises(RuntimeError, match=f"visionzip::{op}: has_cls is {has_cls!r}; expected True or False"):
        bad_input.function(call)


def test_what_torch_fx_traces_with_stands_for_a_tensor(rng):
    call = random_call("merge", rng, GOOD)
    traced = torch.fx.symbolic_trace(lambda x, assignment: visionzip_ext.merge(x, assignment, GOOD.k, GOOD.m).relu())
    assert torch.equal(traced(*call.tensors.values()), visionzip_ext.merge(*call.args).relu())
