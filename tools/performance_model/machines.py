"""The GPUs of the model: each number with where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

_WHITEPAPER = "NVIDIA H100 Tensor Core GPU Architecture; an H200 has the same multiprocessors"
_GUIDE = "CUDA C++ Programming Guide, compute capability 9.0"
_LUO = "Luo et al., Benchmarking and Dissecting the Nvidia Hopper GPU Architecture, arXiv 2402.13499"
_JIN = "Jin et al., Uncovering Real GPU NoC Characteristics, MICRO 2024"
_ASSUMED = "assumed"


class Constant(NamedTuple):
    """A number, its unit, and its source."""

    value: float
    unit: str
    source: str


HOPPER = {
    "clock": Constant(1.98e9, "1/s", "highest clock that nvidia-smi shows of the SXM boards; under load it is lower"),
    "multiprocessors": Constant(132, "", _WHITEPAPER),
    "block_shared_bytes": Constant(232448, "bytes", _GUIDE),
    "multiprocessor_shared_bytes": Constant(233472, "bytes", _GUIDE),
    "reserved_shared_bytes": Constant(1024, "bytes of each block, by the driver", _GUIDE),
    "multiprocessor_registers": Constant(65536, "", _GUIDE),
    "schedulers": Constant(4, "of a multiprocessor, an instruction of a warp a cycle each", _GUIDE),
    "special_results": Constant(16, "a cycle and multiprocessor: exponentials and reciprocals", _GUIDE),
    "tensor_products": Constant(
        2048, "a cycle and multiprocessor, of 16 bits: 989e12 FLOP/s at 1.83 GHz", "NVIDIA H100 data sheet, SXM"
    ),
    "tensor_share": Constant(0.62, "of those, that mma.sync reaches, which the kernels use", _LUO),
    "multiprocessor_load": Constant(64, "bytes a cycle from L2 into a multiprocessor", _LUO),
    "copy_share": Constant(0.9, "of the memory's bandwidth, that a copy reaches", _ASSUMED),
    "memory_latency": Constant(480, "cycles", _LUO),
    "l2_latency": Constant(260, "cycles", _LUO),
    "peer_latency": Constant(200, "cycles to another multiprocessor's shared memory", f"{_JIN}; {_LUO}: 180"),
    "cluster_barrier": Constant(260, "cycles: an L2 round trip", "NVIDIA/cccl, issue 9994"),
    "fence": Constant(260, "cycles: MEMBAR.GPU, which a releasing arrival begins with, waits for L2", _ASSUMED),
    "block_barrier": Constant(30, "cycles", _ASSUMED),
    "first_launch": Constant(2.5e-6, "s between two events around a launch", _ASSUMED),
    "further_launch": Constant(1.0e-6, "s from a kernel's end to the next one's beginning", _ASSUMED),
}
"""What both GPUs share."""

PROCESSING_CLUSTERS = (18, 18, 18, 16, 16, 16, 16, 14)
"""Multiprocessors of each, within which a cluster lies. An example, as boards differ: of clusters of 8 blocks 15 run at
the same time, as was seen on an H100 (accel-sim/gpu-app-collection, issue 87), and of 16 blocks 7."""


@dataclass(frozen=True)
class Machine:
    """A GPU."""

    name: str
    device: str
    """As torch calls it, and so the file with what was measured on it."""
    bandwidth: Constant

    @property
    def copy_bandwidth(self) -> float:
        """Bytes a second, read and written, of a large copy."""
        return self.bandwidth.value * HOPPER["copy_share"].value


MACHINES = (
    Machine("H100", "NVIDIA H100 80GB HBM3", Constant(3.35e12, "bytes/s", "NVIDIA H100 data sheet, SXM")),
    Machine("H200", "NVIDIA H200", Constant(4.8e12, "bytes/s", "NVIDIA H200 data sheet, SXM")),
)


def clusters_of(blocks: int) -> int:
    """How many clusters of so many blocks, each on a multiprocessor of its own, run at the same time."""
    return sum(size // blocks for size in PROCESSING_CLUSTERS)


def seconds(cycles: float) -> float:
    """At the highest clock."""
    return cycles / HOPPER["clock"].value
