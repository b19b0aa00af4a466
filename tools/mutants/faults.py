"""Faults in C++ that are easily made and change results; each has tests that should see it."""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """One replacement in one file.

    Attributes:
        name: what goes wrong.
        file: below the repository's root.
        old: stands in the file once.
        new: in its place.
        tests: pytest's arguments: the tests that should fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


_TIES = ("python_tests/operators/test_ties.py",)
_DECISIONS = ("python_tests/operators/test_ties.py", "python_tests/operators/test_decisions.py")
_MERGE = ("python_tests/operators/test_merge.py",)
_POLICY = ("python_tests/operators/test_policy.py",)

FAULTS = (
    Fault(
        "of equal scores the last is kept",
        "csrc/cpu/kernels/selection.cpp",
        "(0xffffffffu - static_cast<uint32_t>(j))",
        "static_cast<uint32_t>(j)",
        _TIES,
    ),
    Fault(
        "NaN is the highest score",
        "csrc/cpu/kernels/selection.cpp",
        "if (x != x) return 0;",
        "if (x != x) return 0xffffffffu;",
        _DECISIONS,
    ),
    Fault(
        "CLS is not kept",
        "csrc/cpu/kernels/phases.cpp",
        "if (cls) kept.push_back(0);",
        "",
        _DECISIONS,
    ),
    Fault(
        "a candidate is taken again",
        "csrc/cpu/kernels/distinct_body.h",
        "max(similarity[i], load(resemblance))",
        "max(load(resemblance), similarity[i])",
        _POLICY,
    ),
    Fault(
        "keys are compared by their products, not by their directions",
        "csrc/cpu/kernels/distinct_body.h",
        "1 / __builtin_sqrt(inverse[i])",
        "1",
        _POLICY,
    ),
    Fault(
        "a CLS without a row moves the targets",
        "csrc/cpu/kernels/selection.cpp",
        "Splitter split(S - first - static_cast<int64_t>(kept.size())",
        "Splitter split(S - static_cast<int64_t>(kept.size())",
        _POLICY,
    ),
    Fault(
        "targets stand too close",
        "csrc/common/types.h",
        "remaining / m > 1 ? remaining / m : 1",
        "remaining / (m + 1) > 1 ? remaining / (m + 1) : 1",
        _DECISIONS,
    ),
    Fault(
        "the mean leaves its target out",
        "csrc/cpu/kernels/weights.cpp",
        "mean ? n + 1 : n",
        "n",
        _MERGE,
    ),
    Fault(
        "the target counts whole in a mean",
        "csrc/cpu/kernels/weights.cpp",
        "mean ? 1.f / static_cast<float>(count_of(token) + 1) : 1.f",
        "1.f",
        _MERGE,
    ),
    Fault(
        "keys are compared unnormalised",
        "csrc/cpu/kernels/assign_body.h",
        "square > 0 ? 1 / __builtin_sqrt(square) : square",
        "square > 0 ? 1 : square",
        _DECISIONS,
    ),
)
