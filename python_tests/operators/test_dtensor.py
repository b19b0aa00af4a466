"""DTensors: images sharded over processes give what one process gives, with gradients; else a clear error."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

import visionzip_ext as vz

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")

if dist.is_available():
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh

    import visionzip_ext.integrations.dtensor

WORLD = 2
SCALE = 0.3


def inputs() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 20, 8, generator=rng)
    queries, keys = torch.randn(2, 4, 2, 20, 6, generator=rng)
    lse = (SCALE * queries @ keys.mT).logsumexp(-1)
    return {"hidden": hidden, "queries": queries, "keys": keys, "lse": lse, "attn": torch.rand(4, 20, generator=rng)}


def check(place: Callable[[Tensor], DTensor], placement: object) -> None:
    """Every operator, forwards and backwards, with inputs placed so and results placed as `placement` says."""
    x = inputs()
    placed = {name: place(tensor) for name, tensor in x.items()}
    hidden, leaf = x["hidden"].requires_grad_(), placed["hidden"].requires_grad_()
    for theirs, ours in (
        (vz.zip(hidden, x["keys"], x["attn"], 5, 2), vz.zip(leaf, placed["keys"], placed["attn"], 5, 2)),
        (
            vz.zip_qk(hidden, x["queries"], x["keys"], 5, 2, scale=SCALE),
            vz.zip_qk(leaf, placed["queries"], placed["keys"], 5, 2, scale=SCALE),
        ),
    ):
        merged = vz.merge(leaf, ours.assignment, 5, 2)
        assert torch.equal(merged.full_tensor(), theirs.tokens)
        for result, expected in zip(ours, theirs, strict=True):
            assert result.placements == (placement,)
            assert torch.equal(result.full_tensor(), expected)
        (expected,) = torch.autograd.grad(theirs.tokens.square().sum(), hidden)
        (gradient,) = torch.autograd.grad(ours.tokens.square().sum(), leaf)
        assert torch.equal(gradient.full_tensor(), expected)


def check_lse(place: Callable[[Tensor], DTensor]) -> None:
    x = inputs()
    placed = {name: place(tensor) for name, tensor in x.items()}
    decision = vz.select_qk(placed["queries"], placed["keys"], 5, 2, scale=SCALE, lse=placed["lse"])
    expected = vz.select_qk(x["queries"], x["keys"], 5, 2, scale=SCALE, lse=x["lse"])
    assert all(torch.equal(one.full_tensor(), other) for one, other in zip(decision, expected, strict=True))


def check_packed(place: Callable[[Tensor], DTensor]) -> None:
    hidden, keys, scores = torch.randn(20, 8), torch.randn(20, 6), torch.rand(20)
    starts = torch.tensor([0, 12, 20], dtype=torch.int32)
    ours = vz.zip_packed(*map(place, (hidden, keys, starts)), 3, 2, scores=distribute(scores, Replicate()))
    theirs = vz.zip_packed(hidden, keys, starts, 3, 2, scores=scores)
    assert all(torch.equal(one.full_tensor(), other) for one, other in zip(ours, theirs, strict=True))


def distribute(x: Tensor, placement: object) -> DTensor:
    return distribute_tensor(x, init_device_mesh("cpu", (WORLD,)), [placement], src_data_rank=None)


def work(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    torch.manual_seed(0)
    try:
        for placement, result in ((Shard(0), Shard(0)), (Replicate(), Replicate())):
            check(lambda x, placement=placement: distribute(x, placement), result)
            check_lse(lambda x, placement=placement: distribute(x, placement))
        check(lambda x: distribute(x, Shard(1)), Replicate())
        check_packed(lambda x: distribute(x, Replicate()))
        with pytest.raises(RuntimeError, match=r"lse is placed as .*redistributes no keyword argument"):
            check_lse(lambda x: distribute(x, Shard(1)))
    finally:
        dist.destroy_process_group()


def test_in_two_processes(tmp_path):
    torch.multiprocessing.spawn(work, (str(tmp_path / "store"),), nprocs=WORLD)
