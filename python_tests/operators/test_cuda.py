"""What surrounds calls on a GPU: CUDA graphs, streams, threads, and other GPUs than the current one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from support.backends import BACKENDS, CUDA
from support.inputs import BF16, OperatorCall, Shape, random_call
from support.packed import Mix, random_packed_call
from torch import Tensor

Problem = Callable[[torch.Generator], OperatorCall]
"""Draws calls that differ in values, and agree in all that the host knows."""

GPUS = torch.cuda.device_count() if CUDA in BACKENDS else 0
HAVE_CLUSTERS = all(torch.cuda.get_device_capability(i) >= (9, 0) for i in range(GPUS))
EVERY_PATH = pytest.mark.parametrize("path", ["cluster"] * HAVE_CLUSTERS + ["grid", "block", "global"])

SHAPE = Shape(B=3, S=200, C=64, H=4, D=64, k=30, m=8)
WITHOUT_CLS = replace(SHAPE, has_cls=False)


def _packed(rng: torch.Generator) -> OperatorCall:
    """The same images' lengths in any order, which the GPU alone reads."""
    lengths = [(40, 90, 120)[i] for i in torch.randperm(3, generator=rng)]
    return random_packed_call("zip_packed", rng, Mix(tuple(lengths), (20, 9, 15), (6, 3, 10), C=64, D=64), (BF16, BF16))


PROBLEMS: dict[str, Problem] = {
    "zip": lambda rng: random_call("zip", rng, SHAPE, (BF16,) * 3, attn="rows"),
    "zip_qk": lambda rng: random_call("zip_qk", rng, WITHOUT_CLS, (BF16,) * 3),
    "zip_packed": _packed,
    "merge": lambda rng: random_call("merge", rng, SHAPE, (BF16,) * 3),
}
EVERY_PROBLEM = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


def on_gpus(number: int) -> Callable:
    """A test of CUDA alone, given as `gpu`; on a machine with fewer GPUs there is no such test, and none to skip."""
    return pytest.mark.parametrize("gpu", [CUDA], ids=str) if number <= GPUS else lambda test: None


def computed(call: OperatorCall, ops) -> tuple[Tensor, ...]:
    """The results where the operator put them."""
    results = call.through(ops)
    return (results,) if isinstance(results, Tensor) else tuple(results)


def refill(call: OperatorCall, other: OperatorCall) -> None:
    """Another call's values in the tensors of this one."""
    for name, x in call.tensors.items():
        x.copy_(other.tensors[name])


def assert_same(actual, expected) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


@on_gpus(1)
@EVERY_PATH
@EVERY_PROBLEM
def test_a_recorded_call_gives_the_bits_of_an_eager_one(gpu, rng, monkeypatch, problem, path):
    """Whatever the tensors hold when it is replayed."""
    monkeypatch.setenv("VISIONZIP_PLAN", f"path={path}")
    call, *others = (problem(rng).moved(gpu) for _ in range(3))
    expected = [other.on(gpu) for other in others]  # what happens at first calls only is not recorded
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = computed(call, gpu.ops)
    for other, wanted in zip(others, expected, strict=True):
        for x in results:
            x.fill_(-1)  # so that only what a replay wrote can be right
        refill(call, other)
        graph.replay()
        assert_same([x.cpu() for x in results], wanted)


LONG, SHORT = 400_000_000, 40_000_000
"""Cycles: about 0.2 s and 0.02 s."""


@on_gpus(1)
@EVERY_PATH
@EVERY_PROBLEM
def test_a_call_works_on_the_current_stream(gpu, rng, monkeypatch, problem, path):
    """After what that stream does before it and before what it does next, while the default stream is busy.

    Its inputs are right only between the two; on the default stream it would come too late, on any other too early.
    """
    monkeypatch.setenv("VISIONZIP_PLAN", f"path={path}")
    call, right, wrong = (problem(rng).moved(gpu) for _ in range(3))
    expected = right.on(gpu)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        right.on(gpu)  # so that this stream has the memory, for which it might else wait
    torch.cuda._sleep(LONG)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SHORT)
        refill(call, right)
        results = computed(call, gpu.ops)
        refill(call, wrong)
        assert_same([x.cpu() for x in results], expected)


@on_gpus(2)
@EVERY_PATH
@EVERY_PROBLEM
def test_tensors_on_another_gpu_than_the_current_one(gpu, rng, monkeypatch, problem, path):
    monkeypatch.setenv("VISIONZIP_PLAN", f"path={path}")
    second = replace(gpu, device=torch.device("cuda", 1))
    call = problem(rng).moved(second)
    with torch.cuda.device(second.device):
        expected = call.on(second)
    assert torch.cuda.current_device() == 0
    results = computed(call, gpu.ops)
    assert torch.cuda.current_device() == 0
    assert {x.device for x in results} == {second.device}
    assert_same([x.cpu() for x in results], expected)


# Blocks of both take more shared memory than a kernel has without asking, and not the same.
OF_TWO_THREADS = (
    Shape(B=1, S=340, C=8, H=1, D=64, k=40, m=8, has_cls=False),
    Shape(B=1, S=220, C=8, H=1, D=64, k=9, m=20, has_cls=False),
)
CALLS_OF_A_THREAD = {"cpu": 50, "emulated": 5, "cuda": 1000}  # that two meet is a matter of luck


@EVERY_PATH
def test_two_threads_at_once(bitwise_backend, rng, monkeypatch, path):
    """With sizes and budgets of their own, but the same kernels: what is set for one's launch must not meet another."""
    monkeypatch.setenv("VISIONZIP_PLAN", f"path={path}")
    calls = [random_call("zip_qk", rng, shape, (BF16,) * 3).moved(bitwise_backend) for shape in OF_TWO_THREADS]
    expected = [computed(call, bitwise_backend.ops) for call in calls]
    both = threading.Barrier(len(calls))

    def repeat(call: OperatorCall) -> list[tuple[Tensor, ...]]:
        both.wait()
        return [computed(call, bitwise_backend.ops) for _ in range(CALLS_OF_A_THREAD[bitwise_backend.name])]

    with ThreadPoolExecutor(len(calls)) as pool:
        for every, wanted in zip(pool.map(repeat, calls), expected, strict=True):
            for results in every:
                assert_same(results, wanted)
