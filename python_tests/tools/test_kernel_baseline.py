"""The gate on the growth of kernels against the committed table."""

import json
from pathlib import Path

import pytest

from tools.kernel_report import __main__ as report
from tools.kernel_report import baseline
from tools.kernel_report.library import Kernel, Library, Usage
from tools.kernel_report.machine_code import Code, Instruction

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


def kernel(name: str, registers: int, instructions: int) -> Kernel:
    code = Code([Instruction(16 * i, "", "FADD", "R1, R1, R2") for i in range(instructions)], threads=128)
    return Kernel(name, "90", Usage(registers, 0, 0, 1024), code)


@pytest.fixture
def committed(monkeypatch, tmp_path) -> Path:
    """A table of the kernels that `make kernels` finds in the library: merge_kernel<float> and another."""
    built = Library([kernel("merge_kernel<float, 1>", 100, 1000), kernel("place_kernel", 40, 200)], ["90"], "13.0")
    table = tmp_path / "table.json"
    baseline.accept(baseline.summary(built), table)
    monkeypatch.setattr(baseline, "TABLE", table)
    monkeypatch.setattr(report, "LIBRARY", tmp_path)
    monkeypatch.setattr(report, "read", lambda path: built)
    monkeypatch.setattr(report, "find", lambda *_: [])  # growth alone
    return table


def change(table: Path, number: str, value: int) -> None:
    """As if less had been committed of merge_kernel<float, 1>."""
    content = json.loads(table.read_text())
    content["kernels"]["90"]["merge_kernel<float, 1>"][number] = value
    table.write_text(json.dumps(content))


def test_the_command_passes_with_the_committed_table(committed, capsys):
    assert report.main([]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("number", "before", "now"), [("registers", 95, 100), ("instructions", 952, 1000)])
def test_the_command_fails_on_growth_and_names_the_kernel(committed, capsys, number, before, now):
    change(committed, number, before)
    assert report.main([]) == 1
    assert capsys.readouterr().err == (
        f"grown: merge_kernel<float, 1>, sm_90: {number}: {before} -> {now} (+5%); KERNELS_ARGS=--accept accepts it\n"
    )
    change(committed, number, before + 1)  # five per cent and no more
    assert report.main(["--json"]) == 0


def test_what_is_accepted_passes_from_then_on(committed):
    change(committed, "registers", 50)
    assert report.main(["--accept"]) == 0
    assert json.loads(committed.read_text())["kernels"]["90"]["merge_kernel<float, 1>"]["registers"] == 100
    assert report.main([]) == 0


def test_another_nvcc_is_told_and_does_not_fail(committed, capsys):
    """Its kernels are others."""
    committed.write_text(json.dumps({**json.loads(committed.read_text()), "nvcc": "12.8"}))
    change(committed, "registers", 50)
    assert report.main([]) == 0
    assert capsys.readouterr().err == "growth not checked: the table is of nvcc 12.8\n"


def test_make_kernels_is_that_command():
    rule = (Path(__file__).resolve().parents[2] / "Makefile").read_text().partition("\nkernels:")[2]
    assert rule.splitlines()[1] == "\t$(BIN)/python -m tools.kernel_report $(KERNELS_ARGS)"
