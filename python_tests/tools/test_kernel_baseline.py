"""The gate on the growth of kernels against the committed table."""

import json

from tools.kernel_report import baseline

NUMBERS = {"registers": 100, "instructions": 1000, "code_bytes": 16000, "spilled_bytes": 0, "static_shared_bytes": 0}


def table(architecture="90", nvcc="13.0", **numbers):
    return {"nvcc": nvcc, "kernels": {architecture: {"merge_kernel<float>": {**NUMBERS, **numbers}}}}


def test_growth_above_five_per_cent_is_told_and_no_other():
    assert list(baseline.growth(table(registers=105, instructions=1050, code_bytes=32000), table())) == []
    assert list(baseline.growth(table(registers=50, instructions=1051), table())) == [
        "merge_kernel<float>, sm_90: instructions: 1000 -> 1051 (+5%)"
    ]
    assert "registers: 100 -> 106" in next(baseline.growth(table(registers=106), table()))
    assert list(baseline.growth(table("80", registers=200), table())) == []


def test_accepting_keeps_other_architectures_of_the_same_nvcc(tmp_path):
    file = tmp_path / "table.json"
    baseline.accept(table("80"), file)
    baseline.accept(table("90"), file)
    assert set(json.loads(file.read_text())["kernels"]) == {"80", "90"}
    baseline.accept(table("90", nvcc="13.1"), file)
    assert set(json.loads(file.read_text())["kernels"]) == {"90"}
