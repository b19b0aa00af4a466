"""Token budgets by image size."""

from __future__ import annotations

import re
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from support import packed
from support.packed import Mix, random_packed_call

import visionzip_ext
from visionzip_ext import Budgets, allocate_budgets

lengths_of_images = st.lists(st.integers(0, 5000), max_size=20)


@given(lengths=lengths_of_images, ratio=st.floats(0, 1, exclude_min=True), share=st.floats(0, 1))
def test_a_ratio(lengths, ratio, share):
    k, m = allocate_budgets(lengths, ratio=ratio, contextual_share=share)
    for length, kept, merged in zip(lengths, k, m, strict=True):
        tokens = kept + merged
        assert min(length, 1) <= tokens <= length
        assert abs(tokens - Fraction(ratio) * length) <= Fraction(1, 2) or tokens == 1
        assert abs(merged - Fraction(share) * tokens) <= Fraction(1, 2)
        assert allocate_budgets([length], ratio=ratio, contextual_share=share) == ([kept], [merged])


@given(lengths=lengths_of_images, data=st.data())
def test_a_total(lengths, data):
    least = sum(length > 0 for length in lengths)
    total = data.draw(st.integers(least, sum(lengths)))
    tokens = [sum(both) for both in zip(*allocate_budgets(lengths, total=total), strict=True)]
    assert sum(tokens) == total
    assert all(min(length, 1) <= count <= length for length, count in zip(lengths, tokens, strict=True))
    quotas = [Fraction(total * length, sum(lengths)) if length else 0 for length in lengths]
    if all(quota >= 1 for quota in quotas if quota):
        assert all(abs(count - quota) < 1 for count, quota in zip(tokens, quotas, strict=True))


def test_a_total_by_hand():
    """Quotas 1.6, 3.2 and 3.2 of 8: the rest goes to the largest remainder."""
    assert allocate_budgets([50, 100, 100], total=8, contextual_share=0) == ([2, 3, 3], [0, 0, 0])
    assert allocate_budgets([10, 10, 10], total=4, contextual_share=0).k == [2, 1, 1], "equal remainders: the first"
    assert allocate_budgets([1000, 1, 0], total=2, contextual_share=0).k == [1, 1, 0], "nobody goes without"
    assert allocate_budgets([], total=0) == ([], [])
    assert allocate_budgets([0, 0], total=0) == ([0, 0], [0, 0])


def test_the_paper_s_share():
    assert allocate_budgets([576], total=64) == Budgets(k=[54], m=[10])
    assert allocate_budgets([576, 1152], ratio=1 / 9) == ([54, 108], [10, 20])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_lengths_from_cu_seqlens(dtype):
    cu_seqlens = torch.tensor([0, 100, 100, 400], dtype=dtype)
    assert allocate_budgets(cu_seqlens.diff(), ratio=0.1) == allocate_budgets([100, 0, 300], ratio=0.1)


@pytest.mark.parametrize(
    "make",
    [tuple, iter, lambda lengths: (length for length in lengths), lambda lengths: map(int, lengths), np.array],
    ids=["tuple", "iterator", "generator", "map", "numpy"],
)
def test_lengths_from_anything_that_yields_ints(make):
    k, m = allocate_budgets(make([100, 0, 300]), total=np.int64(40))
    assert (k, m) == allocate_budgets([100, 0, 300], total=40)
    assert {type(count) for count in k + m} == {int}


def test_budgets_are_what_the_operators_take(backend, rng):
    lengths = (100, 0, 333, 7)
    k, m = allocate_budgets(lengths, total=60)
    call = random_packed_call("zip_packed", rng, Mix(lengths, tuple(k), tuple(m)))
    results = call.on(backend)
    assert len(results[0]) == 60
    packed.check(call, results)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "expected either ratio or total, got ratio=None and total=None"),
        ({"ratio": 0.5, "total": 5}, ValueError, "expected either ratio or total, got ratio=0.5 and total=5"),
        ({"ratio": 0}, ValueError, "ratio must be above 0 and at most 1, got 0"),
        ({"ratio": 1.5}, ValueError, "ratio must be at least 0 and at most 1, got 1.5"),
        ({"ratio": float("nan")}, ValueError, "ratio must be at least 0 and at most 1, got nan"),
        ({"ratio": "half"}, TypeError, "ratio must be a float, got 'half' of type str"),
        ({"total": 2}, ValueError, "total must be at least 3 .* and at most 60 .*, got 2"),
        ({"total": 1, "lengths": [10, 1, 0]}, ValueError, "total must be at least 2 .* and at most 11 .*, got 1"),
        ({"total": 61}, ValueError, "total must be at least 3 .* and at most 60 .*, got 61"),
        ({"total": 30.0}, TypeError, "total must be an int, got 30.0 of type float"),
        ({"total": 30, "contextual_share": -0.1}, ValueError, "contextual_share must be at least 0"),
        ({"total": 30, "contextual_share": None}, TypeError, "contextual_share must be a float, got None"),
        ({"total": 30, "lengths": [10, -1]}, ValueError, r"lengths\[1\] must be at least 0, got -1"),
        ({"total": 30, "lengths": [10, 2.5]}, TypeError, r"lengths\[1\] must be an int, got 2.5 of type float"),
        ({"total": 5, "lengths": 10}, TypeError, r"lengths must be ints or a tensor .* got 10 of type int"),
        ({"total": 5, "lengths": np.array(10)}, TypeError, r"lengths must be ints .* of type ndarray"),
        ({"total": 5, "lengths": [True]}, TypeError, r"lengths\[0\] must be an int, got True of type bool"),
        (
            {"total": 30, "lengths": torch.ones(3)},
            TypeError,
            "lengths must be ints or a tensor .* got a tensor of torch.float32",
        ),
        ({"total": 30, "lengths": torch.ones(3, dtype=torch.int64, device="meta")}, TypeError, "on meta"),
    ],
    ids=lambda value: re.sub(r"\W+", "-", str(value)).strip("-"),  # words that a command line takes
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        allocate_budgets(**{"lengths": [10, 20, 30], **arguments})


def test_the_old_name_warns():
    with pytest.warns(DeprecationWarning, match="allocate_budgets"):
        budgets = visionzip_ext.budget([100, 300], total=40, contextual_share=0.25)
    assert budgets == allocate_budgets([100, 300], total=40, contextual_share=0.25)
