"""Call a function on an emulated CPU: ``python -m tools.x86_emulation BOCHS LIBRARY FUNCTION BYTES < block > results``.

The CPU is that of Bochs, as the package bochscpu-python has it; BOCHS is the library that bochs.cpp is compiled to. The
function takes a pointer to a block of memory, which is read from standard input and written to standard output
afterwards.

The emulated CPU sees the memory of this process at the same addresses, so that the library is loaded, and its addresses
are resolved, by this process; from then on each instruction is Bochs'. There is no operating system behind it: a
function that makes a system call, throws, or touches memory that is not there ends this process with a message.
"""

from __future__ import annotations

import argparse
import bisect
import ctypes
import mmap
import os
import struct
import sys
from pathlib import Path
from typing import Any, NoReturn

PAGE = 4096
REGION = 1 << 30
"""A page of the emulated CPU's page tables: 1 GiB."""

STACK_BYTES = 1 << 20
HALT = b"\xf4"

CR0_PROTECTED_PAGED = 1 << 31 | 1 << 16 | 1 << 5 | 1 << 4 | 1 << 0
CR4_PAE_SSE_XSAVE = 1 << 5 | 1 << 9 | 1 << 10 | 1 << 18
EFER_LONG_MODE = 1 << 8 | 1 << 10
XCR0_X87_SSE_AVX_AVX512 = 0xE7
MXCSR_DEFAULT = 0x1F80
PRESENT_WRITABLE = 0b11
LARGE = 1 << 7


def _end(message: str) -> NoReturn:
    """Bochs' callbacks cannot raise."""
    print(message, file=sys.stderr, flush=True)
    os._exit(1)


class Memory:
    """Anonymous memory of this process, at a fixed address."""

    def __init__(self, size: int):
        """Of `size` bytes, zero at first."""
        self.bytes = mmap.mmap(-1, size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))


class AddressSpace:
    """This process's memory for the emulated CPU, at the same virtual addresses.

    The emulated CPU has fewer bits of physical addresses than of virtual ones, so each 1 GiB that has anything in it is
    given the next physical one; the first holds the page tables. Bochs asks for each physical page once.
    """

    def __init__(self, bochs: Any):
        """As this process's memory is now: what is mapped later is not there."""
        self._bochs = bochs
        self._mapped = self._read_maps()
        self._regions = sorted(
            {n for begin, end in self._mapped for n in range(begin // REGION, (end - 1) // REGION + 1)}
        )
        self._tables = self._write_tables()

    @staticmethod
    def _read_maps() -> list[tuple[int, int]]:
        lines = Path("/proc/self/maps").read_text().splitlines()
        ranges = [tuple(int(x, 16) for x in line.split()[0].split("-")) for line in lines]
        return [(begin, end) for begin, end in ranges if end < 1 << 47]

    def _write_tables(self) -> Memory:
        """One table of the fourth level, at physical address 0, and behind it those of the third that it needs."""
        third = sorted({region >> 9 for region in self._regions})
        tables = Memory(PAGE * (1 + len(third)))
        for i, number in enumerate(third):
            struct.pack_into("<Q", tables.bytes, 8 * number, PAGE * (i + 1) | PRESENT_WRITABLE)
        for i, region in enumerate(self._regions):
            entry = PAGE * (1 + third.index(region >> 9)) + 8 * (region & 511)
            struct.pack_into("<Q", tables.bytes, entry, REGION * (i + 1) | LARGE | PRESENT_WRITABLE)
        for offset in range(0, len(tables.bytes), PAGE):
            self._bochs.memory.page_insert(offset, tables.address + offset)
        return tables

    def insert(self, physical: int) -> None:
        """Bochs' callback for a physical page that it has not seen."""
        region, offset = divmod(physical, REGION)
        address = self._regions[region - 1] * REGION + offset
        i = bisect.bisect_right(self._mapped, (address, 1 << 64)) - 1
        if i < 0 or address >= self._mapped[i][1]:
            _end(f"the emulated CPU touched {address:#x}, where there is no memory")
        self._bochs.memory.page_insert(physical // PAGE * PAGE, address // PAGE * PAGE)


def _import_bochs(library: str, model: str) -> Any:
    """Symbols are global, so that those of `library`, loaded first, take the place of the package's own."""
    own = ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
    (ctypes.c_char * 32).in_dll(own, "x86_emulation_model").value = model.encode()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    import bochscpu.cpu
    import bochscpu.memory

    return bochscpu


def _segment(bochs: Any, selector: int, attributes: int) -> Any:
    segment = bochs.Segment()
    segment.present, segment.selector, segment.attr = True, selector, attributes
    segment.base, segment.limit = 0, 0xFFFFFFFF
    return segment


def call(bochs: Any, function: int, argument: int) -> None:
    """Call the function at an address with one argument, in 64-bit mode."""
    stack = Memory(STACK_BYTES)
    thread_data = Memory(PAGE)  # what the segment register FS points to
    stack.bytes[: len(HALT)] = HALT  # the stack's other end is where the function returns to
    top = stack.address + STACK_BYTES - PAGE - 8
    struct.pack_into("<Q", stack.bytes, top - stack.address, stack.address)

    state = bochs.State()
    state.cr0, state.cr3, state.cr4, state.efer = CR0_PROTECTED_PAGED, 0, CR4_PAE_SSE_XSAVE, EFER_LONG_MODE
    state.xcr0, state.mxcsr, state.mxcsr_mask, state.rflags = XCR0_X87_SSE_AVX_AVX512, MXCSR_DEFAULT, 0xFFFF, 2
    state.cs = _segment(bochs, 0x08, 0xA09B)
    for name in ("ss", "ds", "es", "fs", "gs"):
        setattr(state, name, _segment(bochs, 0x10, 0xC093))
    thread_segment = _segment(bochs, 0x10, 0xC093)
    thread_segment.base = thread_data.address
    state.fs = thread_segment
    state.rip, state.rsp, state.rdi = function, top, argument

    session = bochs.Session()
    space = AddressSpace(bochs)
    session.missing_page_handler = space.insert
    hook = bochs.Hook()
    hook.hlt = lambda session, cpu: session.stop()
    hook.exception = lambda session, cpu, vector, error: _end(
        f"the emulated CPU raised exception {vector} at {session.cpu.state.rip:#x}"
        + (", an instruction that it does not have" if vector == 6 else "")
    )
    session.cpu.state = state
    session.run([hook])


def main() -> NoReturn:
    """Make the call that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tools.x86_emulation", description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="sapphire_rapids", help="Bochs' name of the CPU, such as tigerlake")
    parser.add_argument("bochs", help="the library that bochs.cpp was compiled to")
    parser.add_argument("library", help="a shared library that this process can load")
    parser.add_argument("function", help="one that it exports")
    parser.add_argument("bytes", type=int, help="size of the block")
    args = parser.parse_args()
    bochs = _import_bochs(args.bochs, args.model)
    function = ctypes.cast(getattr(ctypes.CDLL(args.library), args.function), ctypes.c_void_p).value
    block = Memory(args.bytes)
    if sys.stdin.buffer.readinto(block.bytes) != args.bytes:
        parser.error("standard input holds fewer bytes")
    call(bochs, function, block.address)
    sys.stdout.buffer.write(block.bytes)
    sys.stdout.flush()
    os._exit(0)  # bochscpu's own clean-up crashes


if __name__ == "__main__":
    main()
