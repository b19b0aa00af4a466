"""What csrc/bindings offers: facts of the build, checks and plans. A test holds this list to the module's own."""

from collections.abc import Mapping, Sequence
from typing import Any

def build_info() -> dict[str, Any]: ...
def check(op: str, arguments: Mapping[str, Any]) -> None: ...
def check_sequences(
    op: str,
    cu_seqlens: Sequence[int],
    T: int,
    k: Sequence[int],
    m: Sequence[int],
    max_seqlen: int | None,
    keep_cls: bool = True,
) -> None: ...
def cpu_factors() -> dict[str, float]: ...
def cpu_isa() -> str: ...
def cuda_thresholds(*, compute_capability: int) -> dict[str, tuple[float, str]]: ...
def divide_packed(work: Sequence[float], *, threads: int) -> tuple[list[list[int]], list[int]]: ...
def plan(
    op: str,
    *,
    B: int,
    S: int,
    C: int = 0,
    H: int = 1,
    D: int = 0,
    k: int,
    m: int,
    has_cls: bool = True,
    threads: int = 1,
    policy: str = "attention",
    keep_cls: bool = True,
) -> dict[str, Any]: ...
def plan_cuda(
    op: str,
    *,
    B: int,
    S: int,
    C: int = 0,
    H: int = 1,
    D: int = 0,
    k: int,
    m: int,
    has_cls: bool = True,
    packed_tokens: int = 0,
    group: int = 1,
    element_bytes: int = 2,
    compute_capability: int = 90,
    multiprocessors: int = 132,
    shared_bytes: int = 232448,
    clusters: Mapping[int, int] = ...,
    policy: str = "attention",
    keep_cls: bool = True,
) -> dict[str, Any]: ...
