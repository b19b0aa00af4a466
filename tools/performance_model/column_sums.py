"""Column sums: what their blocks have to do, and how long the multiprocessors take for it."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Any

from tools.performance_model.counts import Tile
from tools.performance_model.machines import HOPPER, seconds

TILE_QUERIES, STRIP_KEYS, CHUNKS, ROW_BLOCK = 32, 64, 8, 1024  # csrc/cuda/plan/column_sums_problem.h
KERNEL_REGISTERS = 128  # of a thread


def cycles_of(tile: Tile) -> float:
    """Of a scheduler for one warp's tile, by what limits it: issue, special functions or tensor cores."""
    quarter = HOPPER["schedulers"].value
    special = 32 * tile.special / (HOPPER["special_results"].value / quarter)
    tensor = tile.products / (HOPPER["tensor_products"].value * HOPPER["tensor_share"].value / quarter)
    return max(tile.issued, special, tensor)


def limit_of(tile: Tile) -> str:
    """The name of what limits it."""
    without = {
        "issue": Tile(tile.issued, 0, 0),
        "exponentials": Tile(0, tile.special, 0),
        "tensor cores": Tile(0, 0, tile.products),
    }
    return max(without, key=lambda name: cycles_of(without[name]))


def compute_seconds(cells: Sequence[int], heads: int, plan: dict[str, Any], tiles: tuple[Tile, Tile, Tile]) -> float:
    """From the first block's beginning to the last one's end, without loads. cells: of each image, in order.

    Blocks begin in order, each where one ends first; those that share a multiprocessor share its schedulers.
    """
    by_shared = HOPPER["multiprocessor_shared_bytes"].value // (
        plan["shared_bytes"] + HOPPER["reserved_shared_bytes"].value
    )
    by_registers = HOPPER["multiprocessor_registers"].value // (KERNEL_REGISTERS * plan["threads"])
    resident = int(max(1, min(by_shared, by_registers)))
    ends = [0.0] * (int(HOPPER["multiprocessors"].value) * resident)
    for own in _blocks(cells, heads, plan, tiles):
        heapq.heapreplace(ends, ends[0] + own * resident)
    return seconds(max(ends))


def _blocks(cells: Sequence[int], heads: int, plan: dict[str, Any], tiles: tuple[Tile, Tile, Tile]) -> Iterator[float]:
    """Cycles of each block."""
    most = max(cells)
    for S in cells:
        chunks = plan["block_chunks"]
        while chunks < CHUNKS and S * S * 2 * chunks <= most * most * plan["block_chunks"]:
            chunks *= 2  # of a shorter image a block takes more
        own = [_block_cycles(S, first, chunks, plan, tiles) for first in range(0, CHUNKS, chunks)]
        for _ in range(heads):
            yield from own


def _block_cycles(S: int, first_chunk: int, chunks: int, plan: dict[str, Any], tiles: tuple[Tile, Tile, Tile]) -> float:
    one, stats, columns = map(cycles_of, tiles)
    all_tiles, strips, warps = _up(S, TILE_QUERIES), _up(S, STRIP_KEYS), plan["threads"] // 32
    chunk_tiles = _up(all_tiles, CHUNKS)
    own = max(0, min(all_tiles, (first_chunk + chunks) * chunk_tiles) - first_chunk * chunk_tiles)
    if plan["one_pass_tokens"] >= S:
        return own * _turns(strips) * one
    cycles = 0.0
    for chunk in range(first_chunk, first_chunk + chunks):
        left = max(0, min(all_tiles, (chunk + 1) * chunk_tiles) - chunk * chunk_tiles)
        while left > 0:
            part = min(left, ROW_BLOCK // TILE_QUERIES)
            cycles += strips * _rounds(part, warps) * stats + part * _rounds(strips, warps) * columns
            left -= part
    return cycles


def _rounds(work: int, warps: int) -> int:
    """Turns of the busiest scheduler, where each warp takes one of `work` at a time."""
    whole, rest = divmod(work, warps)
    return whole * _turns(warps) + _turns(rest)


def _turns(warps: int) -> int:
    """Of the busiest scheduler for one turn of so many warps."""
    return _up(warps, int(HOPPER["schedulers"].value))


def _up(x: int, unit: int) -> int:
    return -(-x // unit)
