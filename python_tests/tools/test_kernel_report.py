"""The CUDA kernels as nvcc compiled them: registers, spills, machine code.  Needs no GPU."""

import json
from dataclasses import replace

import pytest

from tools.kernel_report import __main__ as report
from tools.kernel_report import library, machine_code
from tools.kernel_report.checks import Exemption, Finding, find
from tools.kernel_report.exemptions import EXEMPTIONS
from tools.kernel_report.library import Kernel, Usage
from visionzip_ext import _C, _library

BUILD = _C.build_info()


@pytest.fixture(scope="session")
def findings(built) -> list[Finding]:
    return find(built.kernels, EXEMPTIONS.get(built.nvcc, ()))


# --- the built library ------------------------------------------------------------------------------------------------


def test_machine_code_is_what_it_should_be(built, findings):
    if built.nvcc not in EXEMPTIONS:
        pytest.skip(f"nobody has read what nvcc {BUILD['cuda_version']} makes of the kernels; make kernels shows it")
    failures = [str(finding) for finding in findings if finding.excuse is None]
    assert not failures, "\n".join(["make kernels tells more:", *failures])


def test_every_architecture_has_every_kernel(built):
    wanted = {a.removesuffix("-real") for a in BUILD["cuda_architectures"] if not a.endswith("-virtual")}
    assert {kernel.architecture for kernel in built.kernels} == wanted
    assert set(built.ptx) == {a.removesuffix("-virtual") for a in BUILD["cuda_architectures"] if "-real" not in a}
    names = {kernel.name for kernel in built.kernels}
    for architecture in wanted:
        of_clusters = int(architecture.rstrip("af")) >= 90
        expected = {name for name in names if of_clusters or "ClusterTeam" not in name}
        assert {kernel.name for kernel in built.kernels if kernel.architecture == architecture} == expected


def test_every_kernel_was_understood(built):
    """Checks that look for something bad find nothing in code that was not read."""
    for kernel in built.kernels:
        assert kernel.code.threads in {128, 256, 512, 1024}, kernel.name
        assert kernel.usage.registers <= 65536 // kernel.code.threads, kernel.name
        assert kernel.code.innermost_loops, kernel.name
        assert {i.base for i in kernel.code.instructions} >= {"LDG", "STG", "EXIT", "BRA"}, kernel.name
        addresses = [i.address for i in kernel.code.instructions]
        assert addresses == list(range(0, 16 * len(addresses), 16)), f"{kernel.name}: instructions were not understood"


def test_every_exemption_is_needed(built, findings):
    """One that excuses nothing would excuse tomorrow's fault."""
    for exemption in EXEMPTIONS.get(built.nvcc, ()):
        for architecture in {kernel.architecture for kernel in built.kernels} & set(exemption.architectures):
            alone = replace(exemption, architectures=(architecture,))
            assert any(map(alone.covers, findings)), f"not needed for sm_{architecture}, so remove it: {exemption}"


def test_the_release_of_nvcc_is_read_from_the_library(built):
    major, minor, *_ = BUILD["cuda_version"].split(".")
    assert built.nvcc == (f"{major}.{minor}" if int(major) >= 13 else "")


def test_report(built, findings, monkeypatch, capsys):
    monkeypatch.setattr(report, "read", lambda path: built)
    expected = int(any(finding.excuse is None for finding in findings))
    assert report.main([str(_library.CUDA_LIBRARY)]) == expected
    table = capsys.readouterr().out
    assert f"nvcc {built.nvcc}" in table
    assert all(kernel.name.partition("<")[2] in table for kernel in built.kernels)
    assert report.main([str(_library.CUDA_LIBRARY), "--json"]) == expected
    facts = json.loads(capsys.readouterr().out)
    assert facts["nvcc"] == built.nvcc
    assert len(facts["kernels"]) == len(built.kernels)
    assert all(0 < kernel["occupancy"] <= 1 for kernel in facts["kernels"])


def test_report_without_a_library(tmp_path, capsys):
    assert report.main([str(tmp_path / "none.so")]) == 1
    assert "built without CUDA" in capsys.readouterr().err


# --- the parsers, and every check on code with a fault planted --------------------------------------------------------

USAGE = """
Fatbin elf code:
================
arch = sm_90

Resource usage:
 Common:
  GLOBAL:0
 Function _Zone:
  REG:40 STACK:8 SHARED:1696 LOCAL:4 CONSTANT[0]:904 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin elf code:
================
arch = sm_100a
 Function _Zone:
  REG:30 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:904 TEXTURE:0 SURFACE:0 SAMPLER:0
"""

HEAD = """
	.section	.nv.info._Zone,"",@"SHT_CUDA_INFO"
	//----- nvinfo : EIATTR_MAX_THREADS
        /*080c*/ 	.byte	0x04, 0x05
        /*0810*/ 	.word	0x00000200
        /*0814*/ 	.word	0x00000001
	.section	.text._Zone,"ax",@progbits
	.sectioninfo	@"SHI_REGISTERS=40"
.text._Zone:
"""

KEY_LOADS = [f"@!P{n % 7} LDG.E.NA.128.CONSTANT R{20 + 4 * n}, desc[UR4][R{60 + 2 * n}.64]" for n in range(8)]
ADD_ROWS = [f"{load}.128 R{20 + 4 * n}, [R{60 + 4 * n}]" for n in range(4) for load in ("LDG.E", "LDS")]
FUSED = [
    [*KEY_LOADS, "FADD R1, R20, R24"],
    ["@!PT LDS RZ, [RZ]", "LDGSTS.E.BYPASS.128 [R31], desc[UR14][R22.64]"],
    ["LDG.E.128 R4, [R2.64]", "LDS.128 R4, [R3]", "STG.E.128 [R8.64+0x10], R4"],
    ADD_ROWS,
    [f"LDS.128 R{4 * n}, [R60+{hex(16 * n)}]" for n in range(9)],
    ["UCGABAR_ARV", "UCGABAR_WAIT"],
]
SCORES = [[f"LDG.E{width} R{20 + n}, [R{60 + 2 * n}.64]" for n in range(16)] for width in (".U16", "")]
GIVEN = [*FUSED, *SCORES]  # attention is given
ROWS = [[*(f"LDG.E.128 R{20 + 4 * n}, [R{60 + 2 * n}.64]" for n in range(4)), "STG.E.128 [R8.64], R20"]]
IN_PIECES = [f"STG.E desc[UR4][R2.64{f'+{hex(4 * n)}' if n else ''}], R{4 + n}" for n in range(4)]


def disassembled(loops: list[list[str]]) -> str:
    """What nvdisasm would print for a kernel of these loops, one after another."""
    lines, address = [HEAD], 0
    for number, loop in enumerate(loops):
        lines.append(f".L_x_{number}:")
        for instruction in [*loop, f"@P0 BRA `(.L_x_{number})"]:
            predicate, _, rest = instruction.partition(" ") if instruction.startswith("@") else ("", "", instruction)
            lines.append(f"        /*{address:04x}*/ {predicate:>18} {rest} ;")
            address += 16
    return "\n".join(lines)


def kernel(loops, name="zip_kernel<bfloat16, qk, ClusterTeam>", architecture="90", usage=None) -> Kernel:
    code = machine_code.parse(disassembled(loops).splitlines())["_Zone"]
    return Kernel(name, architecture, usage or Usage(40, 0, 0, 1024), code)


def found(*arguments, **others) -> list[str]:
    return [finding.check for finding in find([kernel(*arguments, **others)], ())]


def test_parse_usage():
    assert library.parse_usage(USAGE.splitlines()) == {
        ("_Zone", "90"): Usage(40, 8, 4, 1696),
        ("_Zone", "100a"): Usage(30, 0, 0, 1024),
    }


def test_parse_code():
    code = kernel(FUSED).code
    assert code.threads == 512
    assert len(code.innermost_loops) == len(FUSED)
    assert [len(loop) for loop in code.innermost_loops] == [len(loop) + 1 for loop in FUSED]
    first = code.instructions[0]
    assert (first.predicate, first.base, first.bytes) == ("@!P0", "LDG", 16)
    narrow = kernel([["LDS.U.U16 R1, [R2]", "STS.64 [R2], R4", "LDC.U8 R1, c[0x0][R1]"]]).code
    assert [i.bytes for i in narrow.instructions] == [2, 8, 1, 4]


def test_innermost_loops_of_a_nest():
    lines = [HEAD, ".L_x_1:", "/*0000*/ IADD3 R1, R1, 0x1, RZ ;", ".L_x_2:"]
    lines += ["/*0010*/ IADD3 R2, R2, 0x1, RZ ;", "/*0020*/ @P1 BRA `(.L_x_2) ;", "/*0030*/ FADD R3, R3, R3 ;"]
    lines += ["/*0040*/ @P1 BRA `(.L_x_2) ;", "/*0050*/ @P2 BRA `(.L_x_1) ;", "/*0060*/ EXIT ;"]
    code = machine_code.parse([f"        {line}" if "/*" in line else line for line in "\n".join(lines).splitlines()])
    (loop,) = code["_Zone"].innermost_loops
    assert [i.address for i in loop] == [0x10, 0x20, 0x30, 0x40]


def test_names():
    mangled = "_ZN9visionzip4cuda10zip_kernelI13__nv_bfloat16Lb1ENS0_11ClusterTeamEEEvNS0_9ZipParamsE"
    merge = "_ZN9visionzip4cuda12merge_kernelI6__halfLi8EEEvNS0_11MergeParamsE"
    assert library.short_names({mangled, merge}) == {
        mangled: "zip_kernel<bfloat16, qk, ClusterTeam>",
        merge: "merge_kernel<float16, 8>",
    }


@pytest.mark.parametrize(
    ("registers", "threads", "architecture", "blocks"),
    [(128, 512, "90", 1), (64, 512, "90", 2), (65, 512, "90", 1), (40, 128, "90", 12), (30, 128, "75", 8)],
)
def test_resident_blocks(registers, threads, architecture, blocks):
    of = kernel(FUSED, architecture=architecture, usage=Usage(registers, 0, 0, 1024))
    of.code.threads = threads
    assert of.resident_blocks == blocks


def test_sound_code_passes():
    assert found(FUSED) == []
    assert found(ROWS, name="merge_kernel<bfloat16, 8>") == []
    assert found([["LDG.E.U16 R1, [R2.64]"]], name="merge_kernel<bfloat16, 1>") == []
    assert found([*FUSED[:-1], *SCORES], name="zip_kernel<float, attn, GridTeam>", architecture="80") == []
    copy = ["LDG.E.128.SYS R4, [R2]", "STS.128 [R3], R4"]
    older = [*FUSED[:1], copy, *FUSED[2:-1], *SCORES]
    assert found(older, name="zip_kernel<float, attn, GridTeam>", architecture="75") == []


@pytest.mark.parametrize(
    ("instruction", "checks"),
    [
        ("STL [R1+0x4], R2", ["local memory", "local memory in loops"]),
        ("LDL.LU R33, [R1+0x4]", ["local memory", "local memory in loops"]),
        ("DFMA R2, R4, R6, R8", ["double precision"]),
        ("MUFU.RCP64H R2, R4", ["double precision"]),
        ("F2F.F64.F32 R2, R4", ["double precision"]),
        ("RED.E.ADD.F32.FTZ.RN.STRONG.GPU [R2.64], R4", ["float atomics"]),
        ("ATOMG.E.ADD.F16x2.RN.STRONG.GPU PT, R1, [R2.64], R4", ["float atomics"]),
        ("RED.E.ADD.STRONG.GPU [R2.64], R4", []),
        ("ATOMS.POPC.INC.32 RZ, [R2]", []),
    ],
)
def test_planted_instruction_is_found(instruction, checks):
    assert found([*FUSED, [instruction]]) == checks


def test_planted_spill_outside_loops_is_found():
    assert found(FUSED, usage=Usage(40, 8, 0, 1024)) == ["local memory"]
    spilling = [*FUSED, [*FUSED[0], "LDL R1, [R1]"]]
    (first, second) = find([kernel(spilling, usage=Usage(40, 8, 0, 1024))], ())
    assert first.message == "8 bytes of stack, 0 bytes stored (STL), 4 bytes loaded (LDL)"
    assert "LDL R1, [R1]" in second.message


@pytest.mark.parametrize(
    ("loop", "check"),
    list(enumerate(["key loads", "row copies", "hidden rows", "hidden rows", "metric loads", "clusters"])),
)
def test_loop_that_is_missing_is_found(loop, check):
    assert found(FUSED[:loop] + FUSED[loop + 1 :]) == [check]


def test_loads_of_keys_that_wait_for_each_other_are_found():
    waiting = [x for load in KEY_LOADS for x in (load, f"FADD R1, {load.split()[2]} R1")]
    assert found([waiting, *FUSED[1:]]) == ["key loads"]
    narrow = [load.replace(".128", ".64") for load in KEY_LOADS]
    assert found([narrow, *FUSED[1:]]) == ["key loads"]


def test_loads_of_scores_that_wait_for_each_other_are_found():
    """Of either size, and of either only: each dtype that attention may have has a loop of its own."""
    name = "zip_kernel<bfloat16, attn, ClusterTeam>"
    assert found(GIVEN, name=name) == []
    for waits in range(2):
        waiting = [x for load in SCORES[waits] for x in (load, f"FADD R1, {load.split()[1]} R1")]
        assert found([*FUSED, waiting, SCORES[1 - waits]], name=name) == ["score loads"]


def test_merged_rows_that_wait_for_each_other_are_found():
    assert found([[ROWS[0][0], ROWS[0][-1]]], name="merge_kernel<bfloat16, 8>") == ["row loads"]
    assert found([[ROWS[0][0], ROWS[0][-1]]], name="merge_backward_kernel<bfloat16, 8>") == []


def test_rows_moved_in_pieces_are_found():
    assert found([*FUSED, IN_PIECES]) == ["stores in pieces"]
    assert found([*FUSED, [IN_PIECES[0], IN_PIECES[2], IN_PIECES[1], IN_PIECES[3]]]) == []
    assert found([["LDG.E.64 R4, [R2.64]", *IN_PIECES]], name="merge_kernel<float, 4>") == [
        "stores in pieces",
        "row loads",
        "row stores",
    ]


def test_clusters_where_there_are_none():
    grid = "zip_kernel<float, qk, GridTeam>"
    assert found(FUSED, name=grid) == ["clusters"]
    assert found([*FUSED[:-1], ["ST.E.128 [R2.64], R4"]], name=grid) == ["clusters"]
    assert found(FUSED, architecture="89") == ["clusters"]


def test_exemption_excuses_what_it_names():
    exemption = Exemption("local memory", "zip_kernel<*, qk, *>", ("90",), "because")
    spilling = kernel(FUSED, usage=Usage(40, 8, 0, 1024))
    excuses = [finding.excuse for finding in find([spilling, replace(spilling, architecture="100")], [exemption])]
    assert excuses == ["because", None]
    others = [
        replace(spilling, name="column_kernel<float>", code=kernel(FUSED[:-1]).code),
        kernel([*FUSED, ["DADD R1, R2, R3"]]),
    ]
    assert [finding.excuse for finding in find(others, [exemption])] == [None, None]


def test_report_fails_on_a_spill(monkeypatch, tmp_path, capsys):
    spilling = kernel([*FUSED, ["LDL R1, [R1]"]], usage=Usage(40, 8, 0, 1024))
    monkeypatch.setattr(report, "read", lambda path: library.Library([spilling], ["120"], "13.0"))
    status = report.main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert status == 1
    assert "40·3 +8B" in printed
    assert "local memory in loops" in printed
    assert "machine code is what it should be" not in printed
