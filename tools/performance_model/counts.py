"""What the model reads of the machine code: a kernel's size, and what a tile of column sums issues."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tools.kernel_report.library import Kernel
from tools.kernel_report.machine_code import Code, Instruction

_EXPONENTIALS = 64  # of a lane's tile: four queries and sixteen keys
_PRODUCTS = 64  # FFMAs of the loop over channels, at least, where no tensor cores are used
_TENSOR = {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8}  # products of an HMMA, by its shape


@dataclass(frozen=True)
class Size:
    """A kernel's own numbers."""

    instructions: int
    registers: int
    block_barriers: int
    cluster_barriers: int


def size_of(kernel: Kernel) -> Size:
    """Counted in the machine code, each instruction once."""
    bases = [instruction.base for instruction in kernel.code.instructions]
    return Size(len(bases), kernel.usage.registers, bases.count("BAR"), bases.count("UCGABAR_WAIT"))


@dataclass(frozen=True)
class Tile:
    """What a warp issues for 32 queries and 64 keys: instructions, those of them that the special function unit runs,
    and the products of its matrix instructions.
    """

    issued: int
    special: int
    products: int


Span = tuple[int, int]
"""First and last instruction."""


def tiles_of(kernel: Kernel, channels: int) -> tuple[Tile, Tile, Tile]:
    """Of column sums in one pass; and in two, the statistics and the columns: in the order of their exponentials."""
    code = kernel.code
    loops = [loop for loop in code.loops if _exponentials(code, loop) >= _EXPONENTIALS]
    innermost = [loop for loop in loops if not any(_inside(other, loop) for other in loops)]
    if len(innermost) != 3:
        raise ValueError(f"{kernel.name} has {len(innermost)} loops over tiles; expected 3")
    innermost.sort(key=lambda loop: _exponentials(code, loop), reverse=True)
    one, stats, columns = (_tile_of(code, loop, channels) for loop in innermost)
    return one, stats, columns


def _tile_of(code: Code, span: Span, channels: int) -> Tile:
    """An iteration: without what is skipped as a rule, and with the loop over channels as often as it runs."""
    inner = [loop for loop in code.loops if _inside(loop, span)]
    rare = list(_skipped(code, span))
    own = [code.instructions[i] for i in range(span[0], span[1] + 1) if not _within(i, [*inner, *rare])]
    repeated = [_of(code, loop) for loop in inner if _multiplies(_of(code, loop))]
    steps = _steps(repeated[0], channels) if repeated else 0
    everything = own + [instruction for loop in repeated for instruction in loop] * steps
    return Tile(len(everything), sum(i.base == "MUFU" for i in everything), sum(map(_products, everything)))


def _steps(loop: Sequence[Instruction], channels: int) -> int:
    """How often a loop over channels runs: sixteen at a time by tensor cores, two by FFMA."""
    return -(-channels // (16 if any(i.base == "HMMA" for i in loop) else 2))


def _skipped(code: Code, span: Span) -> Iterator[Span]:
    """What branches go round that forms no products and no exponentials: masks of the last tile, signs, rounding."""
    for begin, end in code.forward_branches:
        skipped = (begin + 1, end - 1)
        if span[0] <= begin and end <= span[1] and not _matters(_of(code, skipped)):
            yield skipped


def _matters(instructions: Sequence[Instruction]) -> bool:
    return _multiplies(instructions) or any(i.base in {"MUFU", "BAR"} for i in instructions)


def _multiplies(instructions: Sequence[Instruction]) -> bool:
    bases = [instruction.base for instruction in instructions]
    return "HMMA" in bases or bases.count("FFMA") >= _PRODUCTS


def _products(instruction: Instruction) -> int:
    """Of a matrix instruction; others have none."""
    if instruction.base != "HMMA":
        return 0
    return next(number for shape, number in _TENSOR.items() if shape in instruction.modifiers)


def _of(code: Code, span: Span) -> Sequence[Instruction]:
    return code.instructions[span[0] : span[1] + 1]


def _inside(inner: Span, outer: Span) -> bool:
    return inner != outer and outer[0] <= inner[0] and inner[1] <= outer[1]


def _within(index: int, spans: Sequence[Span]) -> bool:
    return any(first <= index <= last for first, last in spans)


def _exponentials(code: Code, span: Span) -> int:
    return sum(i.base == "MUFU" and "EX2" in i.modifiers for i in _of(code, span))
