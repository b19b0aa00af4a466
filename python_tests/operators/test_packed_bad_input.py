"""Every bad input of the operators on packed images raises RuntimeError, with the same words on every way in."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from support import bad_input
from support.backends import CPU
from support.bad_input import FLOATS, BadCall, changed
from support.inputs import dtype_name
from support.packed import (
    CARRYING_PACKED,
    DECIDING_PACKED,
    PACKED_OPS,
    ZIPPING_PACKED,
    Mix,
    PackedCall,
    random_packed_call,
)

import visionzip_ext
from visionzip_ext._registration.checks import check

GOOD = Mix((10, 6), (3, 2), (2, 1), C=6, H=2, D=4)  # T = 16
DECIDING = ZIPPING_PACKED + DECIDING_PACKED


@dataclass(frozen=True)
class Bad(BadCall):
    """Of an operator on packed images: a list stands for values of cu_seqlens, None for what is left out."""

    source: str = "lse"

    def __str__(self) -> str:
        return f"{self.op}-{self.source}-{self.changes}"

    def call(self) -> PackedCall:
        rng = torch.Generator().manual_seed(0)
        call = random_packed_call(self.op, rng, GOOD, source=self.source, bounded=False)
        for name, value in self.change.items():
            if name in ("k", "m"):
                call = replace(call, **{name: value})
            elif isinstance(value, torch.Tensor):
                call = call.with_tensors(**{name: value})
            elif value is None:
                call.tensors.pop(name, None)
                call.options.pop(name, None)
            elif name in call.tensors:
                call = call.with_tensors(**{name: changed(call.tensors[name], value)})
            else:
                call.options[name] = value
        return call


def _sources() -> list[Bad]:
    rows = []
    scores = torch.zeros(16)
    for op in DECIDING:
        rows += [
            Bad(op, {"scores": scores}, "queries and scores are both given; expected one of them"),
            Bad(op, {"queries": None}, "neither queries nor scores is given; expected one of them"),
            Bad(op, {"scale": 0.5}, "scale is given with scores; expected it with queries only", "scores"),
            Bad(op, {"lse": torch.zeros(2, 16)}, "lse is given with scores; expected it with queries only", "scores"),
            Bad(op, {"group": 0}, "group is 0; expected 1 to 65536"),
            Bad(op, {"group": 65537}, "group is 65537; expected 1 to 65536"),
            Bad(
                op,
                {"group": 4, "has_cls": True},
                "group is 4 and has_cls is true; expected group = 1 where token 0 is CLS",
            ),
            Bad(op, {"max_seqlen": -1}, "max_seqlen is -1; expected at least 0"),
        ]
    return rows


def _ranks() -> list[Bad]:
    split = "unflatten(1, (H, D)) of (T, H * D)"
    rows = [
        Bad("zip_packed", {"hidden": (16,)}, "hidden has shape (16); expected (T, C)"),
        Bad("zip_packed", {"hidden": (1, 16, 6)}, "hidden has shape (1, 16, 6); expected (T, C)"),
    ]
    for op in DECIDING:
        rows += [
            Bad(op, {"keys": (16, 8)}, f"keys has shape (16, 8); expected (T, H, D): keys.{split}"),
            Bad(op, {"queries": (16, 8)}, f"queries has shape (16, 8); expected (T, H, D): queries.{split}"),
            Bad(op, {"queries": (1, 2, 16, 4)}, "queries has shape (1, 2, 16, 4); expected (T, H, D)"),
            Bad(op, {"lse": (32,)}, "lse has shape (32); expected (H, T)"),
            Bad(op, {"keys": (16,)}, "keys has shape (16); expected (T, D) or (T, H, D)", "scores"),
            Bad(op, {"scores": (1, 16)}, "scores has shape (1, 16); expected (T)", "scores"),
        ]
    for op in PACKED_OPS:
        rows += [
            Bad(op, {"cu_seqlens": (3, 1)}, "cu_seqlens has shape (3, 1); expected (n + 1)"),
            Bad(op, {"cu_seqlens": ()}, "cu_seqlens has shape (); expected (n + 1)"),
            Bad(op, {"cu_seqlens": (0,)}, "cu_seqlens has shape (0); expected (n + 1)"),
        ]
    for op, name in (("merge_packed", "x"), ("merge_packed_backward", "grad")):
        rows += [
            Bad(op, {name: ()}, f"{name} has shape (); expected (T, *)"),
            Bad(op, {"assignment": (2, 8)}, "assignment has shape (2, 8); expected (T)"),
        ]
    return rows


def _misfits() -> list[Bad]:
    hidden, keys = "which does not fit hidden of shape (16, 6)", "which does not fit keys of shape (16, 2, 4)"
    rows = [
        Bad("zip_packed", {"keys": (15, 2, 4)}, f"keys has shape (15, 2, 4), {hidden}; expected (16, H, D)"),
        Bad("zip_packed", {"keys": (16, 0, 4)}, f"keys has shape (16, 0, 4), {hidden}; expected (16, H, D)"),
        Bad("zip_packed", {"keys": (15, 4)}, f"keys has shape (15, 4), {hidden}; expected (16, D)", "scores"),
        Bad(
            "zip_packed",
            {"group": 4},
            f"keys has shape (16, 2, 4), {hidden}; expected (64, H, D) with group = 4",
        ),
        Bad("select_packed", {"group": 3}, "keys has shape (16, 2, 4); expected a multiple of group = 3 rows"),
        Bad(
            "merge_packed",
            {"assignment": (15,)},
            "assignment has shape (15), which does not fit x of shape (16, 6); expected (16)",
        ),
        Bad(  # and not k and m, which have no room in it
            "merge_packed",
            {"assignment": (3,)},
            "assignment has shape (3), which does not fit x of shape (16, 6); expected (16)",
        ),
        Bad(
            "merge_packed_backward",
            {"grad": (9, 6)},
            "grad has shape (9, 6); expected 8 rows, the k + m of all sequences",
        ),
    ]
    for op in DECIDING:
        rows += [
            Bad(op, {"queries": (16, 2, 5)}, f"queries has shape (16, 2, 5), {keys}; expected (16, 2, 4)"),
            Bad(op, {"queries": (16, 1, 4)}, f"queries has shape (16, 1, 4), {keys}; expected (16, 2, 4)"),
            Bad(op, {"lse": (2, 15)}, f"lse has shape (2, 15), {keys}; expected (2, 16)"),
            Bad(op, {"lse": (16, 2)}, f"lse has shape (16, 2), {keys}; expected (2, 16): lse.transpose(0, 1) fits"),
            Bad(
                op,
                {"queries": (2, 16, 4)},
                f"queries has shape (2, 16, 4), {keys}; expected (16, 2, 4): queries.transpose(0, 1) fits",
            ),
            Bad(op, {"scores": (17,)}, f"scores has shape (17), {keys}; expected (16)", "scores"),
        ]
    return rows


def _dtypes() -> list[Bad]:
    rows = []
    for dtype in (torch.float64, torch.int32, torch.bool, torch.complex64):
        name = dtype_name(dtype)
        rows += [
            Bad("zip_packed", {"hidden": dtype}, f"hidden has dtype {name}; expected {FLOATS}"),
            Bad("merge_packed", {"x": dtype}, f"x has dtype {name}; expected {FLOATS}"),
            Bad("merge_packed_backward", {"grad": dtype}, f"grad has dtype {name}; expected {FLOATS}"),
            *(Bad(op, {"keys": dtype}, f"keys has dtype {name}; expected {FLOATS}") for op in DECIDING),
            *(Bad(op, {"queries": dtype}, f"queries has dtype {name}; expected {FLOATS}") for op in DECIDING),
            *(Bad(op, {"scores": dtype}, f"scores has dtype {name}; expected {FLOATS}", "scores") for op in DECIDING),
            *(Bad(op, {"lse": dtype}, f"lse has dtype {name}; expected float32") for op in DECIDING),
            *(Bad(op, {"assignment": dtype}, f"assignment has dtype {name}; expected int64") for op in CARRYING_PACKED),
        ]
    for op in PACKED_OPS:
        wide = "cu_seqlens has dtype int64; expected int32: cu_seqlens.int(), as the functions of visionzip_ext do"
        rows += [
            Bad(op, {"cu_seqlens": torch.float32}, "cu_seqlens has dtype float32; expected int32"),
            Bad(op, {"cu_seqlens": torch.int64}, wide),
        ]
    return rows


def _devices() -> list[Bad]:
    first_and_others = {
        "zip_packed": ("hidden", "keys", "queries", "lse", "cu_seqlens"),
        "select_packed": ("keys", "queries", "lse", "cu_seqlens"),
        "merge_packed": ("x", "assignment", "cu_seqlens"),
        "merge_packed_backward": ("grad", "assignment", "cu_seqlens"),
    }
    return [
        Bad(
            op,
            {other: torch.device("meta")},
            f"{other} is on meta but {first} is on cpu; expected all tensors on the same device",
        )
        for op, (first, *others) in first_and_others.items()
        for other in others
    ]


def _budgets() -> list[Bad]:
    rows = []
    for op in PACKED_OPS:
        count = "numbers for 2 sequences; expected one for all, or one for each"
        rows += [
            Bad(op, {"k": [1, 1, 1]}, f"k has 3 {count}"),
            Bad(op, {"k": []}, f"k has 0 {count}"),
            Bad(op, {"m": [1, 1, 1]}, f"m has 3 {count}"),
            Bad(op, {"k": [3, -1]}, "k[1] is -1; expected at least 0"),
            Bad(op, {"m": [-2]}, "m[0] is -2; expected at least 0"),
            Bad(op, {"k": [10, 5]}, "k and m add up to more than T = 16 tokens"),
            Bad(op, {"k": [7], "m": [2]}, "k and m add up to more than T = 16 tokens"),
            Bad(op, {"k": [2**63 - 1], "m": [2**63 - 1]}, "k and m add up to more than T = 16 tokens"),
        ]
    for op in DECIDING:
        cls = {"has_cls": True, "k": [3, 0]}
        rows.append(Bad(op, cls, "sequence 1: k = 0 and m = 1; expected k >= 1 (CLS is one of the k), or k = m = 0"))
    return rows


def _words() -> list[Bad]:
    ops = (*ZIPPING_PACKED, *CARRYING_PACKED)
    return [Bad(op, {"merge": "sum"}, 'merge is "sum"; expected "residual" or "mean"') for op in ops]


def _values() -> list[Bad]:
    """What only reading cu_seqlens shows."""
    rows = []
    for op in PACKED_OPS:
        fits = "do not fit S = 4 tokens; expected k + m <= 4"
        rows += [
            Bad(op, {"cu_seqlens": [1, 10, 16]}, "cu_seqlens[0] is 1; expected 0"),
            Bad(op, {"cu_seqlens": [0, 10, 15]}, "cu_seqlens[2] is 15; expected T = 16"),
            Bad(op, {"cu_seqlens": [0, 10, 17]}, "cu_seqlens[2] is 17; expected T = 16"),
            Bad(op, {"cu_seqlens": [0, 17, 16]}, "cu_seqlens[2] is 16 after 17; expected numbers that never fall"),
            Bad(op, {"cu_seqlens": [0, -1, 16]}, "cu_seqlens[1] is -1 after 0; expected numbers that never fall"),
            Bad(op, {"cu_seqlens": [0, 4, 16]}, f"sequence 0: k = 3 and m = 2 {fits}"),
            Bad(op, {"cu_seqlens": [0, 12, 16], "k": [3, 4], "m": [0, 1]}, f"sequence 1: k = 4 and m = 1 {fits}"),
        ]
    for op in DECIDING:
        rows.append(Bad(op, {"max_seqlen": 9}, "sequence 0 has 10 tokens; expected at most max_seqlen = 9"))
    return rows


WITHOUT_VALUES = _sources() + _ranks() + _misfits() + _dtypes() + _devices() + _budgets() + _words()
TABLE = WITHOUT_VALUES + _values()
ON_ONE_DEVICE = [bad for bad in WITHOUT_VALUES if bad not in _devices()]


def _of_a_function(bad: Bad) -> bool:
    return bad.op != "merge_packed_backward" and bad.change.get("cu_seqlens") is not torch.int64


@pytest.mark.parametrize("bad", [bad for bad in TABLE if _of_a_function(bad)], ids=str)
def test_function(bad):
    bad.raises(bad_input.function)


@pytest.mark.parametrize("bad", TABLE, ids=str)
def test_torch_ops(bad):
    bad.raises(bad_input.torch_ops)


@pytest.mark.parametrize("bad", WITHOUT_VALUES, ids=str)
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


@pytest.mark.parametrize("source", ["lse", "scores"])
@pytest.mark.parametrize("op", PACKED_OPS)
def test_the_good_call_is_good(dispatched_backend, op, source):
    """The table's rows fail for what they changed and for nothing else."""
    Bad(op, {}, "", source).call().on(dispatched_backend)


# Of GOOD's second image, tokens 10 to 15: rows 5 and 6 are kept, row 7 is that of its only target, token 11.
SECOND_IMAGE = [5, 7, 6, 7, 7, 7]


@pytest.mark.parametrize(
    ("second_image", "words"),
    [
        ([5, 7, 6, 8, 7, 7], r"assignment\[13\] \(sequence 1\) is 8"),
        ([5, 7, 6, 4, 7, 7], r"assignment\[13\] \(sequence 1\) is 4"),
        ([5, 7, 6, -1, 7, 7], r"assignment\[13\] \(sequence 1\) is -1"),
        ([5, 7, 6, 6, 7, 7], r"assignment\[13\] \(sequence 1\) is 6"),
        ([5, 7, 7, 7, 7, 7], r"the assignment of sequence 1 names no token for row 6"),
    ],
)
@pytest.mark.parametrize("op", CARRYING_PACKED)
def test_an_assignment_that_is_no_decision_raises(op, second_image, words):
    """On the CPU: it would read or write beyond an image's rows."""
    call = random_packed_call(op, torch.Generator().manual_seed(0), GOOD)
    call.tensors["assignment"][10:] = torch.tensor(SECOND_IMAGE)
    call.on(CPU)
    call.tensors["assignment"][10:] = torch.tensor(second_image)
    with pytest.raises(RuntimeError, match=f"visionzip::{op}: {words}; expected a decision for k = 2 and m = 1"):
        call.on(CPU)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=dtype_name)
@pytest.mark.parametrize("op", ["zip_packed", "select_packed", "merge_packed"])
def test_numbers_in_a_tensor(op, dtype):
    call = random_packed_call(op, torch.Generator().manual_seed(0), GOOD)
    function = getattr(visionzip_ext, op)
    listed = function(*call.args, **call.kwargs)
    tensors = (torch.tensor(numbers, dtype=dtype) for numbers in call.args[-2:])
    torch.testing.assert_close(function(*call.args[:-2], *tensors, **call.kwargs), listed, rtol=0, atol=0)


@pytest.mark.parametrize(
    "make",
    [np.array, tuple, iter, lambda k: [np.int32(k[0]), torch.tensor(k[1])]],
    ids=["numpy", "tuple", "iterator", "scalars"],
)
def test_numbers_from_anything_that_yields_ints(make):
    call = random_packed_call("select_packed", torch.Generator().manual_seed(0), GOOD)
    made = visionzip_ext.select_packed(*call.args[:-2], make([3, 2]), call.m, **call.kwargs)
    torch.testing.assert_close(made, visionzip_ext.select_packed(*call.args, **call.kwargs), rtol=0, atol=0)


# One of them is a list of one number here; those beyond 64 bits have words of their own.
NO_SMALL_INTEGERS = [
    (number, words) for number, words in bad_input.NO_INTEGERS if "64 bits" not in words and "[3]" not in words
]


@pytest.mark.parametrize(
    ("k", "words"),
    [
        (torch.tensor([3.0, 2.0]), "a tensor of dtype float32 and shape (2,) on cpu"),
        (torch.ones(1, 2, dtype=torch.int64), "a tensor of dtype int64 and shape (1, 2) on cpu"),
        (torch.ones(2, dtype=torch.int64, device="meta"), "a tensor of dtype int64 and shape (2,) on meta"),
        (2.5, "2.5 of type float"),
        ([3.0, 2.0], "[3.0, 2.0] of type list"),
        (np.array([3.0, 2.0]), "array([3., 2.]) of type ndarray"),
        ("32", "'32' of type str"),
        (None, "None"),
        ([True, True], "[True, True] of type list"),
        (torch.tensor([True, True]), "a tensor of dtype bool and shape (2,) on cpu"),
        *((number, words.split(";")[0]) for number, words in NO_SMALL_INTEGERS if words != "None"),
    ],
    ids=str,
)
@pytest.mark.parametrize("op", ["zip_packed", "select_packed", "merge_packed"])
def test_numbers_that_are_no_ints(op, k, words):
    call = random_packed_call(op, torch.Generator().manual_seed(0), GOOD)
    with pytest.raises(RuntimeError) as caught:
        getattr(visionzip_ext, op)(*call.args[:-2], k, [2, 1], **call.kwargs)
    expected = "an integer, a list of integers, or a tensor (n,) of integers on the CPU"
    assert str(caught.value) == f"visionzip::{op}: k is {words}; expected {expected}"


@pytest.mark.parametrize("made", bad_input.INTEGERS.values(), ids=bad_input.INTEGERS)
@pytest.mark.parametrize("op", ["zip_packed", "select_packed", "merge_packed"])
def test_one_number_of_any_kind(op, made):
    call = random_packed_call(op, torch.Generator().manual_seed(0), Mix((10, 6), (3, 3), (2, 2), C=6, H=2, D=4))
    same = getattr(visionzip_ext, op)(*call.args[:-2], made(3), made(2), **call.kwargs)
    torch.testing.assert_close(same, bad_input.function(call), rtol=0, atol=0)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
@pytest.mark.parametrize("op", ["zip_packed", "select_packed", "merge_packed"])
def test_a_number_beyond_64_bits(op, number):
    call = random_packed_call(op, torch.Generator().manual_seed(0), GOOD)
    with pytest.raises(
        RuntimeError, match=rf"visionzip::{op}: k is \[3, {number}\] of type list; expected integers of 64"
    ):
        getattr(visionzip_ext, op)(*call.args[:-2], [3, number], [2, 1], **call.kwargs)


@pytest.mark.parametrize(("number", "words"), [row for row in bad_input.NO_INTEGERS if row[0] is not None], ids=repr)
@pytest.mark.parametrize("name", ["group", "max_seqlen"])
@pytest.mark.parametrize("op", DECIDING)
def test_group_and_max_seqlen_are_integers(op, name, number, words):
    call = Bad(op, {}, "").call()
    call.options[name] = number
    with pytest.raises(RuntimeError) as caught:
        bad_input.function(call)
    assert str(caught.value) == f"visionzip::{op}: {name} is {words}"


@pytest.mark.parametrize("op", ["zip_packed", "select_packed", "merge_packed"])
def test_cu_seqlens_of_int64(op):
    """As cumsum makes them."""
    call = random_packed_call(op, torch.Generator().manual_seed(0), GOOD)
    wide = call.with_tensors(cu_seqlens=call.tensors["cu_seqlens"].long())
    torch.testing.assert_close(bad_input.function(wide), bad_input.function(call), rtol=0, atol=0)


@pytest.mark.parametrize("starts", [[0, 10, 2**32 + 16], [-(2**32), 10, 16], [0, 2**32 + 10, 16]], ids=str)
@pytest.mark.parametrize("op", ["zip_packed", "select_packed", "merge_packed"])
def test_cu_seqlens_that_would_fit_into_int32_by_wrapping(op, starts):
    call = random_packed_call(op, torch.Generator().manual_seed(0), GOOD, bounded=False)
    with pytest.raises(
        RuntimeError, match=rf"visionzip::{op}: cu_seqlens\[\d\] is (-1|2147483647|16 after 2147483647);"
    ):
        bad_input.function(call.with_tensors(cu_seqlens=torch.tensor(starts)))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("kind", bad_input.REACHING_THE_OPERATOR)
@pytest.mark.parametrize("source", ["lse", "scores"])
@pytest.mark.parametrize("op", PACKED_OPS)
def test_no_strided_tensor_through_torch_ops(rng, op, source, kind):
    call = random_packed_call(op, rng, GOOD, source=source)
    bad_input.check_no_strided_tensor(call, kind, ("queries", "scores", "lse"), bad_input.torch_ops)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", bad_input.NO_STRIDED_TENSORS)
@pytest.mark.parametrize("source", ["lse", "scores"])
@pytest.mark.parametrize("op", [op for op in PACKED_OPS if op != "merge_packed_backward"])
def test_no_strided_tensor(rng, op, source, kind):
    call = random_packed_call(op, rng, GOOD, source=source)
    bad_input.check_no_strided_tensor(call, kind, ("queries", "scores", "lse"))


@pytest.mark.parametrize("has_cls", [None, 1, "yes"])
@pytest.mark.parametrize("op", DECIDING)
def test_has_cls_is_true_or_false(rng, op, has_cls):
    call = random_packed_call(op, rng, GOOD)
    call.options["has_cls"] = has_cls
    with pytest.raises(RuntimeError, match=f"visionzip::{op}: has_cls is {has_cls!r}; expected True or False"):
        bad_input.function(call)
