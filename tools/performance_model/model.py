"""The model: of a case of the benchmarks and its plan, how many bytes, launches and exchanges, and how long they take.

It is a floor. Launches, bytes, exchanges between blocks, barriers and what column sums compute are in it; what a phase
of the fused kernel takes for its own arithmetic is not. So a GPU that is far above it does something that is not
needed, or waits where nobody thought that it would. The parts are added, as if none hid another: so it is with one
image; with many, exchanges are hidden, which are a few microseconds then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from benchmarks.cases import Case
from benchmarks.tune_sweeps import plan_arguments
from tools.kernel_report.library import Kernel
from tools.performance_model.column_sums import STRIP_KEYS, compute_seconds
from tools.performance_model.counts import Size, size_of, tiles_of
from tools.performance_model.machines import HOPPER, Machine, clusters_of, seconds
from visionzip_ext import _C

_DTYPES = {"torch.float32": "float", "torch.float16": "float16", "torch.bfloat16": "bfloat16"}
_COMPILED_CHANNELS = (64, 72, 80, 96, 128)  # for which column sums of 16 bits have kernels of their own
_BLOCK_THREADS = 512  # that a multiprocessor has registers for


def plan_of(case: Case) -> dict[str, Any]:
    """What the planner makes of it, as VISIONZIP_PLAN overrides it. `merge` has no plan: a block makes a row."""
    if case.op == "merge":
        return {"path": "rows", "blocks": case.B * (case.k + case.m), "threads": 128, "team_blocks": 1}
    return _C.plan_cuda(
        **plan_arguments(case),
        multiprocessors=int(HOPPER["multiprocessors"].value),
        shared_bytes=int(HOPPER["block_shared_bytes"].value),
        clusters={blocks: clusters_of(blocks) for blocks in range(1, 17)},
    )


@dataclass(frozen=True)
class Modelled:
    """Microseconds of a call, by what takes them."""

    launches: float
    memory: float
    """the bytes, and the latencies of loads that wait for one another"""
    exchanges: float
    """between the blocks of a team, and the barriers of a block"""
    column_sums: float

    @property
    def total(self) -> float:
        """Of all: none of them hides another."""
        return self.launches + self.memory + self.exchanges + self.column_sums


@dataclass(frozen=True)
class Work:
    """What a case makes a GPU do. kernels: those of the library, for one architecture, by name."""

    case: Case
    kernels: Mapping[str, Kernel]

    @cached_property
    def plan(self) -> dict[str, Any]:
        """The planner's."""
        return plan_of(self.case)

    @cached_property
    def launches(self) -> list[str]:
        """The kernels that are launched, in order; of memory that is set, "memset"."""
        case, dtype = self.case, _DTYPES[str(self.case.dtype)]
        rows = f"merge_kernel<{dtype}, {16 // case.dtype.itemsize}>"
        if case.op == "merge":
            return [rows]
        names = ["(anonymous namespace)::place_kernel"] if case.lengths else []
        if "scoring" in self.plan:
            if self.plan["scoring"]["one_pass_tokens"] == 0:
                raise ValueError(f"{case.name}: column sums of heads in slices of channels are not modelled")
            compiled = case.dtype.itemsize == 2 and case.D in _COMPILED_CHANNELS
            names.append(f"column_sums_kernel<{dtype}, {case.D if compiled else 0}>")
        source = "qk" if case.op == "zip_qk" and case.has_cls else "attn"
        if self.plan["path"] == "global":
            scores = ["global_softmax_kernel"] if source == "qk" else []
            scores += ["global_columns_kernel"] if "scoring" in self.plan else []
            decision = ["global_scores_kernel", "global_select_kernel", "global_targets_kernel", "global_assign_kernel"]
            return [*names, f"global_keys_kernel<{dtype}, {source}>", *scores, *decision, rows]
        if self.plan["scratch_bytes"] > 0:
            names.append("memset")
        team = "ClusterTeam" if self.plan["path"] == "cluster" else "GridTeam"
        return [*names, f"zip_kernel<{dtype}, {source}, {team}>"]

    @property
    def cells(self) -> list[int]:
        """Rows of keys, of each image."""
        return [self.case.group * length for length in self.case.lengths] or [self.case.S] * self.case.B

    @property
    def is_fused(self) -> bool:
        """Whether the last kernel is the fused one."""
        return self.launches[-1].startswith("zip_kernel")

    @property
    def exchanges(self) -> int:
        """That an image's team waits for: scores, softmax's statistics, ranks, assignments (zip_kernel.cuh)."""
        if not self.is_fused or self.plan["team_blocks"] == 1:
            return 0
        statistics = ", qk, " in self.launches[-1]
        return 1 + statistics + self.plan["rank_counting"] + (self.case.m > 0)

    @property
    def sizes(self) -> list[Size]:
        """Of each kernel that is launched."""
        return [size_of(self.kernels[name]) for name in self.launches if name != "memset"]

    @property
    def resident(self) -> int:
        """Blocks that a multiprocessor works on at the same time."""
        return max(1, _BLOCK_THREADS // self.plan["threads"])

    @property
    def at_once(self) -> int:
        """Images that are worked on at the same time."""
        team = self.plan["team_blocks"]
        if self.plan["path"] == "cluster":
            return clusters_of(team) * self.resident
        return max(1, int(HOPPER["multiprocessors"].value) * self.resident // team)

    @property
    def waves(self) -> int:
        """In which the images are worked on; packed ones count by their tokens, as so many of the longest."""
        case = self.case
        images = -(-sum(case.lengths) // case.S) if case.lengths else case.B
        return -(-images // self.at_once)

    def on(self, machine: Machine) -> Modelled:
        """How long it takes there."""
        first, further = HOPPER["first_launch"].value, HOPPER["further_launch"].value
        parts = (
            first + further * (len(self.launches) - 1),
            self._memory(machine),
            self._exchanges(),
            self._column_sums(),
        )
        return Modelled(*(1e6 * part for part in parts))

    def _memory(self, machine: Machine) -> float:
        """Bytes through the memory, or into the multiprocessors of the last kernel's wave, if those are few.

        And two round trips: for keys, and for hidden, where what those decide says what is read of it.
        """
        case = self.case
        moved = case.bytes_moved / machine.copy_bandwidth
        blocks = min(case.B, self.at_once) * self.plan["team_blocks"] if self.is_fused else self.plan["blocks"]
        loading = min(HOPPER["multiprocessors"].value, blocks)
        queries = sum(self.cells) * case.H * case.D * case.dtype.itemsize if "scoring" in self.plan else 0
        into_each = (case.bytes_moved - queries) / loading / HOPPER["multiprocessor_load"].value
        trips = 1 if self.plan.get("staged") else 2
        return max(moved, seconds(into_each)) + seconds(trips * HOPPER["memory_latency"].value)

    def _exchanges(self) -> float:
        """Of a wave, as often as waves follow one another: blocks side by side are in different phases."""
        if not self.is_fused:
            return 0.0
        between = HOPPER["fence"].value + (
            HOPPER["peer_latency"].value + HOPPER["cluster_barrier"].value
            if self.plan["path"] == "cluster"
            else 3 * HOPPER["l2_latency"].value  # a count, its being seen, and what was written
        )
        cycles = self.exchanges * between + self.sizes[-1].block_barriers * HOPPER["block_barrier"].value
        return seconds(cycles) * max(1.0, self.waves / self.resident)

    def _column_sums(self) -> float:
        """The first block's keys, and all tiles."""
        if "scoring" not in self.plan:
            return 0.0
        case, plan = self.case, self.plan["scoring"]
        kernel = next(self.kernels[name] for name in self.launches if name.startswith("column_sums"))
        held = min(max(self.cells), plan["threads"] // 32 * STRIP_KEYS) * case.D * case.dtype.itemsize
        loading = HOPPER["memory_latency"].value + held / HOPPER["multiprocessor_load"].value
        return seconds(loading) + compute_seconds(self.cells, case.H, plan, tiles_of(kernel, case.D))


def describe_plan(plan: Mapping[str, Any]) -> str:
    """In a few words."""
    if plan["path"] in ("rows", "global"):
        return plan["path"]
    sums = f", sum_chunks {plan['scoring']['block_chunks']}" if "scoring" in plan else ""
    return f"{plan['path']} {plan['team_blocks']} x {plan['threads']}{', staged' if plan['staged'] else ''}{sums}"
