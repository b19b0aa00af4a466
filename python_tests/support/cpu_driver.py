"""The CPU kernels of instruction sets that this machine may lack, executed by emulators; builds what that needs.

python_tests/instruction_sets/ has the driver, a program and a library that compute one call of an operator.
"""

from __future__ import annotations

import functools
import importlib.util
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from support import emulation
from support.backends import Backend
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "python_tests" / "instruction_sets"
BUILD = ROOT / "build" / "cpu_drivers"

CROSS_COMPILER = "aarch64-linux-gnu-g++"
QEMU = "qemu-aarch64"
X86_SETS = ("baseline", "avx2", "avx512", "avx512bf16")
_IS_X86 = platform.machine() == "x86_64"

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # csrc/common/types.h, as all that follows
_SOURCES = {2: 0, 3: 1, 4: 2}  # by the rank of attn
_QUERY_KEY = 3
_MODES = {"residual": 0, "mean": 1}
_POLICIES = {"attention": 0, "distinct": 1}
_OPS = {"zip": 0, "select": 1, "merge": 2, "merge_backward": 3}  # instruction_sets/call.h
_HEAD = struct.Struct("16s 16q d 8q")
_TENSORS = ("keys", "queries", "lse", "attn", "x", "indices", "assignment", "out")  # the order in call.h
_ALIGNMENT = 64

Results = tuple[Tensor, ...]


def missing_for_neon() -> str:
    """Why ARM's kernels cannot be executed here; empty if they can."""
    missing = [name for name in (CROSS_COMPILER, QEMU) if shutil.which(name) is None]
    packages = "Debian and Ubuntu: apt-get install g++-aarch64-linux-gnu qemu-user"
    return f"no {' and no '.join(missing)} ({packages})" if missing else ""


def missing_for_x86() -> str:
    """Why x86's kernels cannot be emulated here; empty if they can."""
    if not _IS_X86:
        return "the emulator calls a library that this machine loads: it needs x86-64"
    return "" if importlib.util.find_spec("bochscpu") else "no bochscpu-python (requirements/test.txt)"


@functools.cache
def _build(machine: str) -> Path:
    """Configure and build the driver for an architecture; where the results lie."""
    definitions = ["-DCMAKE_BUILD_TYPE=Release"]
    if machine != platform.machine():
        definitions += ["-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={machine}"]
        definitions += [f"-DCMAKE_CXX_COMPILER={CROSS_COMPILER}"]
    build = BUILD / machine
    with emulation.lock(BUILD):
        emulation.execute("cmake", "-S", SOURCE, "-B", build, "-G", "Ninja", *definitions)
        emulation.execute("cmake", "--build", build)
    return build


class _Block:
    """A call's tensors one after another behind its head."""

    def __init__(self) -> None:
        self._parts: dict[int, Tensor] = {}
        self._size = _aligned(_HEAD.size)

    def add(self, x: Tensor) -> int:
        """The tensor's offset."""
        offset = self._size
        self._parts[offset] = x.contiguous()
        self._size += max(_aligned(x.nbytes), _ALIGNMENT)
        return offset

    def bytes(self, head: bytes) -> bytearray:
        block = bytearray(self._size)
        block[: len(head)] = head
        for offset, x in self._parts.items():
            if x.numel():
                block[offset : offset + x.nbytes] = x.view(-1).view(torch.uint8).numpy().tobytes()
        return block


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class DriverOps:
    """The operators of one instruction set, as `torch.ops.visionzip` has them."""

    def __init__(self, instruction_set: str, command: Callable[[], list[str | Path]]):
        self._instruction_set = instruction_set
        self._command = command

    def select(self, keys: Tensor, attn: Tensor, k: int, m: int, **options: Any) -> Results:
        return self._call("select", k, m, {"keys": keys, "attn": attn}, **options)

    def select_qk(self, queries: Tensor, keys: Tensor, k: int, m: int, **options: Any) -> Results:
        return self._call("select", k, m, {"keys": keys, "queries": queries}, **options)

    def zip(self, hidden: Tensor, keys: Tensor, attn: Tensor, k: int, m: int, **options: Any) -> Results:
        return self._call("zip", k, m, {"x": hidden, "keys": keys, "attn": attn}, **options)

    def zip_qk(self, hidden: Tensor, queries: Tensor, keys: Tensor, k: int, m: int, **options: Any) -> Results:
        return self._call("zip", k, m, {"x": hidden, "keys": keys, "queries": queries}, **options)

    def merge(self, x: Tensor, assignment: Tensor, k: int, m: int, **options: Any) -> Results:
        return self._call("merge", k, m, {"x": x, "assignment": assignment}, **options)

    def merge_backward(self, grad: Tensor, assignment: Tensor, k: int, m: int, **options: Any) -> Results:
        return self._call("merge_backward", k, m, {"x": grad, "assignment": assignment}, **options)

    def _call(
        self,
        op: str,
        k: int,
        m: int,
        tensors: dict[str, Tensor],
        *,
        has_cls: bool = True,
        scale: float = 0.0,
        lse: Tensor | None = None,
        merge: str = "residual",
        policy: str = "attention",
        keep_cls: bool = True,
    ) -> Results:
        keys, attn, x = (tensors.get(name) for name in ("keys", "attn", "x"))
        if keys is None:
            B, S = tensors["assignment"].shape
            H, D, source = 0, 0, 0
            results = ["out"]
        else:
            B, H, S, D = keys.shape
            source = _QUERY_KEY if attn is None else _SOURCES[attn.ndim]
            tensors = {**tensors, "indices": _unwritten(B, k), "assignment": _unwritten(B, S)}
            results = [*(["out"] if x is not None else []), "indices", "assignment"]
        C = 0 if x is None else x.shape[2]
        if x is not None:
            tensors["out"] = x.new_full((B, S if op == "merge_backward" else k + m, C), float("nan"))
        if lse is not None:
            tensors["lse"] = lse
        block = _Block()
        offsets = {name: block.add(tensor) for name, tensor in tensors.items()}
        dtypes = [0 if tensor is None else _DTYPES[tensor.dtype] for tensor in (keys, attn, x)]
        head = _HEAD.pack(
            self._instruction_set.encode(),
            *(
                _OPS[op],
                source,
                has_cls,
                _POLICIES[policy],
                keep_cls,
                B,
                S,
                C,
                H,
                D,
                k,
                m,
                _MODES[merge],
                *dtypes,
                scale,
            ),
            *(offsets.get(name, 0) for name in _TENSORS),
        )
        result = self._execute(block.bytes(head))
        return tuple(_tensor_at(result, offsets[name], tensors[name]) for name in results)

    def _execute(self, block: bytearray) -> bytearray:
        command = [*self._command(), str(len(block))]
        result = subprocess.run(command, cwd=ROOT, input=block, capture_output=True, check=False)
        assert result.returncode == 0, f"{self._instruction_set}: status {result.returncode}\n{result.stderr.decode()}"
        assert len(result.stdout) == len(block)
        return bytearray(result.stdout)


def _unwritten(*sizes: int) -> Tensor:
    return torch.full(sizes, -7)


def _tensor_at(block: bytearray, offset: int, like: Tensor) -> Tensor:
    if like.numel() == 0:
        return torch.empty_like(like)
    return torch.frombuffer(block, dtype=like.dtype, count=like.numel(), offset=offset).view(like.shape)


def _backend(instruction_set: str, emulator: str, command: Callable[[], list[str | Path]]) -> Backend:
    ops = DriverOps(instruction_set, command)
    return Backend(instruction_set + emulator, ops, torch.device("cpu"), bitwise=True, dispatched=False)


def natively(instruction_set: str) -> Backend:
    """The kernels on this machine's own CPU, which must have their instructions."""
    return _backend(instruction_set, "", lambda: [_build(platform.machine()) / "cpu_driver"])


def by_qemu(instruction_set: str) -> Backend:
    """The kernels for 64-bit ARM."""
    return _backend(instruction_set, " by qemu", lambda: [QEMU, _build("aarch64") / "cpu_driver"])


def by_bochs(instruction_set: str, model: str = "sapphire_rapids") -> Backend:
    """The kernels for x86, on a model of CPU that Bochs has."""

    def command() -> list[str | Path]:
        libraries = [_build("x86_64") / name for name in ("libx86_emulation_bochs.so", "libcpu_driver_x86.so")]
        return [sys.executable, "-m", "tools.x86_emulation", f"--model={model}", *libraries, "visionzip_run_call"]

    return _backend(instruction_set, " by Bochs", command)


NEON = by_qemu("neon")
BOCHS = {name: by_bochs(name) for name in X86_SETS}
NATIVE = {name: natively(name) for name in X86_SETS}
