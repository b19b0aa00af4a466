"""What every kernel's machine code must be like, and the exceptions from that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tools.kernel_report.library import Kernel
from tools.kernel_report.machine_code import Instruction, Loop, loads_in_flight, split_stores

_DOUBLE = {"DADD", "DMUL", "DFMA", "DSETP", "DMNMX", "DMMA"}
_ATOMIC = {"ATOM", "ATOMG", "ATOMS", "ATOMR", "RED", "REDG", "REDS"}
_FLOAT = ("F16", "F32", "F64", "BF16")
_CLUSTER = {"UCGABAR_ARV", "UCGABAR_WAIT"}
_MATRIX = {"HMMA": "product of matrices", "LDSM": "load of matrices"}
_PRODUCTS = 128  # two channels of 4 queries and 16 keys
_HEADS = 8  # whose keys are loaded before the first is used
_SCORES = 16  # of a token's attention, likewise
_ROWS = 4  # of those that are merged, likewise


@dataclass(frozen=True)
class Finding:
    """Something that a kernel should not do, or does not do."""

    check: str
    kernel: str
    architecture: str
    message: str
    excuse: str | None = None

    def __str__(self) -> str:
        """In one line."""
        return f"{self.kernel}, sm_{self.architecture}: {self.check}: {self.message}"


@dataclass(frozen=True)
class Exemption:
    """Lets a check's findings pass for some kernels (a pattern) and architectures, for a reason that was measured."""

    check: str
    kernels: str
    architectures: tuple[str, ...]
    reason: str

    def covers(self, finding: Finding) -> bool:
        """Whether this finding is meant."""
        return (
            finding.check == self.check
            and fnmatchcase(finding.kernel, self.kernels)
            and finding.architecture in self.architectures
        )


Check = Callable[[Kernel], Iterable[str]]


def _in_loops(kernel: Kernel, wanted: Callable[[Loop], bool]) -> bool:
    return any(wanted(loop) for loop in kernel.code.innermost_loops)


def _count(loop: Loop, *bases: str) -> int:
    """How many loads or stores of 128 bits there are."""
    return sum(instruction.is_wide(*bases) for instruction in loop)


# --- for all kernels --------------------------------------------------------------------------------------------------


def local_memory(kernel: Kernel) -> Iterator[str]:
    """Registers that were spilled, and arrays that found no place in registers."""
    stores, loads = kernel.spilled_bytes("STL"), kernel.spilled_bytes("LDL")
    if kernel.local_bytes or stores or loads:
        yield f"{kernel.local_bytes} bytes of stack, {stores} bytes stored (STL), {loads} bytes loaded (LDL)"


def local_memory_in_loops(kernel: Kernel) -> Iterator[str]:
    """The same where it costs most: no exemption from the check before is one from this."""
    found = [i for loop in kernel.code.innermost_loops for i in loop if i.base in {"LDL", "STL"}]
    if found:
        yield f"an access to local memory in an innermost loop: {found[0]} ({len(found)} in all)"


def double_precision(kernel: Kernel) -> Iterator[str]:
    """Arithmetic in float64, of which most GPUs have a 32nd or 64th of their float32 units."""

    def is_double(instruction: Instruction) -> bool:
        return instruction.base in _DOUBLE or any(m == "F64" or m.endswith("64H") for m in instruction.modifiers)

    yield from _offenders(kernel, "arithmetic in float64", is_double)


def float_atomics(kernel: Kernel) -> Iterator[str]:
    """Sums whose order, and so whose result, changes from run to run."""

    def is_float(instruction: Instruction) -> bool:
        return instruction.base in _ATOMIC and any(m.startswith(_FLOAT) for m in instruction.modifiers)

    yield from _offenders(kernel, "an atomic operation on floats", is_float)


def clusters(kernel: Kernel) -> Iterator[str]:
    """Cluster barriers, and addresses of any memory, in kernels of clusters and only there."""

    def is_cluster(instruction: Instruction) -> bool:
        return instruction.base in _CLUSTER

    def is_generic(instruction: Instruction) -> bool:
        return instruction.base in {"LD", "ST"}

    if "ClusterTeam" not in kernel.name:
        yield from _offenders(kernel, "a cluster barrier", is_cluster)
        yield from _offenders(kernel, "an access whose memory (global, shared) the compiler does not know", is_generic)
        return
    if kernel.capability < 90:
        yield "there are no clusters before sm_90"
    missing = _CLUSTER - {i.base for i in kernel.code.instructions}
    if missing:
        yield f"no {' and no '.join(sorted(missing))}: its blocks never meet"


def _offenders(kernel: Kernel, what: str, offends: Callable[[Instruction], bool]) -> Iterator[str]:
    found = [i for i in kernel.code.instructions if offends(i)]
    if found:
        yield f"{what}: {found[0]} ({len(found)} in all)"


# --- for kernels that move 128 bits at a time -------------------------------------------------------------------------


def stores_in_pieces(kernel: Kernel) -> Iterator[str]:
    """128 bits that the compiler stores as four times 32."""
    found = split_stores(kernel.code.instructions)
    if found:
        yield f"four stores of 32 bits where one of 128 would do: {found[0]} ({len(found)} times in all)"


# --- for the fused kernel ---------------------------------------------------------------------------------------------


def key_loads(kernel: Kernel) -> Iterator[str]:
    """The loop over a token's keys has those of eight heads under way at a time."""
    yield from _too_few_in_flight(kernel, _HEADS)


def score_loads(kernel: Kernel) -> Iterator[str]:
    """Given attention is read by many loads at a time, of each dtype that it may have: few threads read it."""
    for size in (2, 4):
        yield from _too_few_in_flight(kernel, _SCORES, size)


def _too_few_in_flight(kernel: Kernel, wanted: int, size: int = 16) -> Iterator[str]:
    most = max((loads_in_flight(loop, "LDG", size=size) for loop in kernel.code.innermost_loops), default=0)
    if most < wanted:
        yield f"no loop has {wanted} loads of {8 * size} bits under way at a time; the most is {most}"


def row_copies(kernel: Kernel) -> Iterator[str]:
    """Rows go to shared memory 128 bits at a time: from sm_80 on past the registers, while the kernel computes."""
    asynchronous = _in_loops(kernel, lambda loop: _count(loop, "LDGSTS") > 0)
    if kernel.capability >= 80 and not asynchronous:
        yield "no loop with an asynchronous copy of 128 bits (LDGSTS.128)"
    if kernel.capability < 80 and not _in_loops(kernel, lambda loop: _count(loop, "LDG") and _count(loop, "STS")):
        yield "no loop that copies 128 bits from global to shared memory (LDG.128 and STS.128)"


def hidden_rows(kernel: Kernel) -> Iterator[str]:
    """Kept rows are copied, and merged ones added, 128 bits at a time; from global or from shared memory."""
    if not _in_loops(kernel, lambda loop: _count(loop, "LDG") and _count(loop, "LDS") and _count(loop, "STG")):
        yield "no loop copies rows by 128 bits (LDG.128 or LDS.128, then STG.128)"
    if not _in_loops(kernel, lambda loop: _count(loop, "LDG") >= 4 and _count(loop, "LDS") >= 4):
        yield "no loop adds rows by four loads of 128 bits (LDG.128 or LDS.128)"


def metric_loads(kernel: Kernel) -> Iterator[str]:
    """The loop of similarities reads a token's and eight targets' metrics from shared memory, 128 bits each."""
    if not _in_loops(kernel, lambda loop: _count(loop, "LDS") > _HEADS):
        yield f"no loop with {_HEADS + 1} loads of 128 bits from shared memory (LDS.128)"


# --- for the kernel of column sums ------------------------------------------------------------------------------------


def matrix_products(kernel: Kernel) -> Iterator[str]:
    """16-bit elements are multiplied by tensor cores, from matrices loaded as such; others by a loop of FMAs."""
    bases = [i.base for i in kernel.code.instructions]
    if "<float," not in kernel.name and kernel.capability >= 80:
        yield from (f"no {what} ({base})" for base, what in _MATRIX.items() if base not in bases)
    elif not _in_loops(kernel, lambda loop: sum(i.base == "FFMA" for i in loop) >= _PRODUCTS):
        yield f"no loop with {_PRODUCTS} multiplications (FFMA)"


# --- for the kernels of merge -----------------------------------------------------------------------------------------


def row_loads(kernel: Kernel) -> Iterator[str]:
    """Rows are read 128 bits at a time, and several that are merged at a time."""
    if kernel.name.startswith("merge_kernel<"):
        yield from _too_few_in_flight(kernel, _ROWS)
    elif not _in_loops(kernel, lambda loop: _count(loop, "LDG") > 0):
        yield "no loop with a load of 128 bits (LDG.128)"


def row_stores(kernel: Kernel) -> Iterator[str]:
    """Rows are written 128 bits at a time."""
    if not _count(kernel.code.instructions, "STG"):
        yield "no store of 128 bits (STG.128)"


_ALWAYS: tuple[Check, ...] = (local_memory, local_memory_in_loops, double_precision, float_atomics, clusters)
_WIDE: tuple[Check, ...] = (stores_in_pieces,)
_FUSED: tuple[Check, ...] = (key_loads, row_copies, hidden_rows, metric_loads)
_COLUMN_SUMS: tuple[Check, ...] = (row_copies, matrix_products)
_MERGE: tuple[Check, ...] = (row_loads, row_stores)


def checks_of(kernel: str) -> tuple[Check, ...]:
    """All that concern a kernel of this name."""
    if kernel.startswith("zip_kernel<"):
        return _ALWAYS + _WIDE + _FUSED + ((score_loads,) if ", attn, " in kernel else ())
    if kernel.startswith("column_sums_kernel<"):
        return _ALWAYS + _COLUMN_SUMS
    if kernel.startswith("merge_") and not kernel.endswith(", 1>"):  # which serves rows of any width
        return _ALWAYS + _WIDE + _MERGE
    return _ALWAYS


def find(kernels: Iterable[Kernel], exemptions: Iterable[Exemption]) -> list[Finding]:
    """All findings, those that an exemption covers with its reason."""
    exemptions = tuple(exemptions)
    findings = []
    for kernel in kernels:
        for check in checks_of(kernel.name):
            for message in check(kernel):
                finding = Finding(check.__name__.replace("_", " "), kernel.name, kernel.architecture, message)
                excuse = next((e.reason for e in exemptions if e.covers(finding)), None)
                findings.append(Finding(finding.check, finding.kernel, finding.architecture, message, excuse))
    return findings
