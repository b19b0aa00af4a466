"""Reads what ``nvdisasm`` prints: instructions, and the loops that they form."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

_INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;")
_LABEL = re.compile(r"(\.L_x_\w+):")
_TARGET = re.compile(r"`\((\.L_x_\w+)\)")
_SECTION = re.compile(r"\t\.section\t\.(text|nv\.info)\.([^,]+),")
_THREADS = "EIATTR_MAX_THREADS"
_WORD = re.compile(r"\.word\s+0x([0-9a-f]+)")
_REGISTER = re.compile(r"\bR(\d+)\b")


class Instruction(NamedTuple):
    """One instruction, such as ``@!P0 LDG.E.128 R4, [R2.64]``."""

    address: int
    predicate: str
    opcode: str
    operands: str

    @property
    def base(self) -> str:
        """The opcode without its modifiers: LDG."""
        return self.opcode.partition(".")[0]

    @property
    def modifiers(self) -> list[str]:
        """E and 128."""
        return self.opcode.split(".")[1:]

    @property
    def bytes(self) -> int:
        """How many a load or store moves for each thread."""
        for size, names in ((16, ("128",)), (8, ("64",)), (2, ("U16", "S16")), (1, ("U8", "S8"))):
            if any(name in self.modifiers for name in names):
                return size
        return 4

    def is_wide(self, *bases: str) -> bool:
        """Whether it is one of these loads or stores, of 128 bits."""
        return self.base in bases and self.bytes == 16

    def __str__(self) -> str:
        """As nvdisasm prints it."""
        return f"/*{self.address:04x}*/ {self.predicate} {self.opcode} {self.operands}".replace("  ", " ")


Loop = Sequence[Instruction]


@dataclass
class Code:
    """A kernel's machine code.  threads: the most in a block, as its launch bounds say; 0: it has none."""

    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    threads: int = 0

    @cached_property
    def loops(self) -> list[tuple[int, int]]:
        """The first and the last instruction of each: a backward branch's target, and the branch."""
        return [(begin, end) for end, begin in self._branches if begin <= end]

    @cached_property
    def forward_branches(self) -> list[tuple[int, int]]:
        """The branch, and the instruction that it goes to, of those that go forward."""
        return [(begin, end) for begin, end in self._branches if begin < end]

    @cached_property
    def innermost_loops(self) -> list[Loop]:
        """From a backward branch's target to the last branch there, where no other such loop lies between them."""
        loops: dict[int, Loop] = {}
        latest = -1
        for begin, end in self.loops:
            if latest <= begin < end:  # one that begins before an earlier one has that inside
                loops[begin] = self.instructions[begin : end + 1]
            if begin < end:
                latest = max(latest, begin)
        return list(loops.values())

    @cached_property
    def _branches(self) -> list[tuple[int, int]]:
        """Each branch, and where it goes."""
        found = []
        for place, instruction in enumerate(self.instructions):
            target = _TARGET.search(instruction.operands) if instruction.base == "BRA" else None
            if target:
                found.append((place, self.labels.get(target.group(1), 0)))
        return found


def parse(lines: Iterable[str]) -> dict[str, Code]:
    """The kernels of one disassembled file, by their mangled names."""
    kernels: dict[str, Code] = {}
    code, in_text, wants_threads = Code(), False, False
    for line in lines:
        if section := _SECTION.match(line):
            code, in_text = kernels.setdefault(section.group(2), Code()), section.group(1) == "text"
        elif line.startswith("\t.section\t"):
            in_text = False
        elif in_text:
            _parse_code(line, code)
        elif _THREADS in line:
            wants_threads = True
        elif wants_threads and (word := _WORD.search(line)):
            code.threads, wants_threads = int(word.group(1), 16), False
    return kernels


def _parse_code(line: str, code: Code) -> None:
    if found := _INSTRUCTION.match(line):
        address, predicate, opcode, operands = found.groups()
        code.instructions.append(Instruction(int(address, 16), predicate or "", sys.intern(opcode), operands))
    elif label := _LABEL.match(line):
        code.labels[label.group(1)] = len(code.instructions)


def loads_in_flight(loop: Loop, *bases: str, size: int = 16) -> int:
    """The most loads of so many bytes that are under way together: none is used before all have begun."""
    pending: set[int] = set()
    most = loads = 0
    for instruction in loop:
        if instruction.base in bases and instruction.bytes == size:
            written, *read = map(int, _REGISTER.findall(instruction.operands))
            if not pending.isdisjoint(read):
                pending.clear()
            loads = loads + 1 if pending else 1
            pending.update(range(written, written + max(1, size // 4)))
            most = max(most, loads)
        elif not pending.isdisjoint(_read_registers(instruction)):
            pending.clear()
    return most


def _read_registers(instruction: Instruction) -> Iterable[int]:
    """Those that an instruction reads; a store's first operand is an address, any other's first is what it writes."""
    operands = instruction.operands
    if not operands.lstrip("desc").startswith("["):
        operands = operands.partition(",")[2]
    return map(int, _REGISTER.findall(operands))


def split_stores(instructions: Sequence[Instruction]) -> list[Instruction]:
    """The first of each four stores of 32 bits at consecutive addresses: 128 bits that the compiler took apart."""
    stores = [(i, _place(i)) for i in instructions if i.base == "STG" and i.bytes == 4]
    found = []
    for first in range(len(stores) - 3):
        instruction, place = stores[first]
        if place and [p for _, p in stores[first : first + 4]] == [(place[0], place[1] + 4 * n) for n in range(4)]:
            found.append(instruction)
    return found


def _place(instruction: Instruction) -> tuple[str, int] | None:
    """The register and the offset of ``[R2.64+0x8]``."""
    found = re.search(r"\[(R\d+)(?:\.\w+)*(?:\+UR\d+)?(?:\+0x([0-9a-f]+))?\]", instruction.operands)
    return (found.group(1), int(found.group(2) or "0", 16)) if found else None
