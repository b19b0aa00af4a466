"""Reads a built library with ``cuobjdump`` and ``nvdisasm``: its kernels, one for each architecture."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tools.kernel_report import machine_code
from tools.kernel_report.machine_code import Code

_FUNCTION = re.compile(r"\s*Function (\S+):")
_USAGE = re.compile(r"\b([A-Z]+)(?:\[\d+\])?:(\d+)")
_ARCHITECTURE = re.compile(r"sm_(\d+[af]?)")
_RELEASE = re.compile(rb"Cuda compilation tools, release (\d+\.\d+)")

_WARP = 32
_REGISTERS = 65536  # of a multiprocessor
_REGISTER_UNIT = 8  # of a thread: they are handed out in such steps
_WARPS_SHARE = 4  # a multiprocessor's registers lie in four parts, each for its own warps
_THREADS = {75: 1024, 86: 1536, 89: 1536, 120: 1536}  # of a multiprocessor; of others 2048
_RESERVED_SHARED = 1024  # of each block, by the driver; from 9.0 on the compiler counts it


class MissingTool(RuntimeError):
    """A program that reads machine code is not installed."""


@dataclass(frozen=True)
class Usage:
    """What a kernel takes, as its compiler says: registers a thread, bytes of stack and local memory, shared bytes."""

    registers: int
    stack: int
    local: int
    shared: int


@dataclass(frozen=True)
class Kernel:
    """One kernel as compiled for one architecture, such as "90"."""

    name: str
    architecture: str
    usage: Usage
    code: Code

    @property
    def capability(self) -> int:
        """The architecture as a number: 90."""
        return int(self.architecture.rstrip("af"))

    @property
    def local_bytes(self) -> int:
        """Bytes of local memory, which lies in global memory: a thread's stack."""
        return self.usage.stack + self.usage.local

    def spilled_bytes(self, opcode: str) -> int:
        """Bytes that a thread's stores (STL) or loads (LDL) of local memory move, if each runs once."""
        return sum(i.bytes for i in self.code.instructions if i.base == opcode)

    @property
    def static_shared(self) -> int:
        """Bytes of shared memory that it declares itself; what is chosen at launch comes on top."""
        return max(0, self.usage.shared - (_RESERVED_SHARED if self.capability >= 90 else 0))

    @property
    def most_threads(self) -> int:
        """How many a multiprocessor can hold."""
        return _THREADS.get(self.capability, 2048)

    @property
    def resident_blocks(self) -> int:
        """How many blocks of the largest size a multiprocessor's registers and threads have room for."""
        warps_of_block = max(self.code.threads, 1) // _WARP
        registers_of_warp = -(-self.usage.registers // _REGISTER_UNIT) * _REGISTER_UNIT * _WARP
        warps = _REGISTERS // _WARPS_SHARE // registers_of_warp * _WARPS_SHARE
        return min(warps, self.most_threads // _WARP) // max(warps_of_block, 1)


@dataclass(frozen=True)
class Library:
    """All of a library's kernels, and the architectures that it holds PTX for."""

    kernels: list[Kernel]
    ptx: list[str]
    nvcc: str
    """The release that compiled it, such as "13.0"; earlier ones do not say, and it is empty."""


def read(library: Path) -> Library:
    """Read everything; takes seconds."""
    usages = parse_usage(_run("cuobjdump", "--dump-resource-usage", library).splitlines())
    ptx = _ARCHITECTURE.findall(_run("cuobjdump", "--list-ptx", library))
    with tempfile.TemporaryDirectory() as folder:
        _run("cuobjdump", "--extract-elf", "all", library.resolve(), cwd=folder)
        images = sorted(Path(folder).iterdir())
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            codes = list(pool.map(_disassemble, images))
        releases = {release.decode() for image in images for release in _RELEASE.findall(image.read_bytes())}
    compiled = [
        (mangled, _ARCHITECTURE.search(image.name).group(1), code)
        for image, kernels in zip(images, codes, strict=True)
        for mangled, code in kernels.items()
    ]
    names = short_names({mangled for mangled, _, _ in compiled})
    kernels = [Kernel(names[mangled], arch, usages[mangled, arch], code) for mangled, arch, code in compiled]
    kernels.sort(key=lambda kernel: (kernel.name, kernel.capability))
    return Library(kernels, sorted(set(ptx)), ", ".join(sorted(releases)))


def _disassemble(image: Path) -> dict[str, Code]:
    return machine_code.parse(_run("nvdisasm", "--no-dataflow", image).splitlines())


def parse_usage(lines: Iterable[str]) -> dict[tuple[str, str], Usage]:
    """What ``cuobjdump --dump-resource-usage`` says, by mangled name and architecture."""
    usages = {}
    architecture = mangled = ""
    for line in lines:
        if line.startswith("arch = "):
            architecture = _ARCHITECTURE.search(line).group(1)
        elif found := _FUNCTION.match(line):
            mangled = found.group(1)
        elif "REG:" in line:
            of = {name: int(number) for name, number in _USAGE.findall(line)}
            usages[mangled, architecture] = Usage(of["REG"], of["STACK"], of["LOCAL"], of["SHARED"])
    return usages


def short_names(mangled: Iterable[str]) -> dict[str, str]:
    """Readable names by mangled ones: ``zip_kernel<bfloat16, qk, ClusterTeam>``."""
    ordered = sorted(mangled)
    demangled = _run("c++filt", *ordered).splitlines() if ordered else []
    return {name: _shorten(long) for name, long in zip(ordered, demangled, strict=True)}


def _shorten(name: str) -> str:
    name = re.sub(r"\(\w+::.*$", "", name.removeprefix("void "))
    name = re.sub(r"\b\w+::", "", name)
    for long, short in (("__nv_bfloat16", "bfloat16"), ("__half", "float16"), ("true", "qk"), ("false", "attn")):
        name = re.sub(rf"\b{long}\b", short, name)
    return name


def _run(program: str, *arguments: str | Path, cwd: str | None = None) -> str:
    result = subprocess.run([find_program(program), *arguments], cwd=cwd, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{program} failed: {result.stderr or result.stdout}")
    return result.stdout


def find_program(program: str) -> str:
    """Where a program is: among the Python packages first, as those were tried."""
    for folder in _folders():
        if path := shutil.which(program, path=str(folder)):
            return path
    if path := shutil.which(program):
        return path
    raise MissingTool(
        f"{program} is not installed; requirements/dev.txt has it for Linux x86-64, as has the CUDA toolkit"
    )


def _folders() -> Iterator[Path]:
    yield Path(sysconfig.get_path("purelib"), "nvidia", "cu13", "bin")
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if variable in os.environ:
            yield Path(os.environ[variable], "bin")
    yield Path("/usr/local/cuda/bin")
