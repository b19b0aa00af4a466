"""What of the benchmarks on a GPU can be tested without one: cases, the timer's order of things, the command."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.utils import counters

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # not installed: benchmarks belong to the source tree

import benchmarks.__main__ as command  # noqa: E402
from benchmarks import providers, pytorch_forms, timers  # noqa: E402
from benchmarks.cases import Case, cuda_cases, quick_cases  # noqa: E402

CPU = torch.device("cpu")


def test_the_promised_cases_are_there():
    """LLaVA-1.5 at 64, 128, 192 tokens; LLaVA-NeXT at 160, 320, 640; Video-LLaVA at 136; SigLIP; S = 4096; packed."""
    tokens: dict[str, set[int]] = {}
    for case in cuda_cases():
        images = case.B if case.model in ("llava-next", "video-llava") else 1
        tokens.setdefault(case.model, set()).add(images * (case.k + case.m))
    assert tokens["llava-1.5"] == {64, 128, 192}
    assert tokens["llava-next"] == {160, 320, 640}
    assert tokens["video-llava"] == {136}
    assert {case.S for case in cuda_cases()} == {257, 577, 729, 1024, 4096}
    assert {case.op for case in cuda_cases()} == {"zip", "zip_qk", "zip_packed", "merge"}
    batches = {case.B for case in cuda_cases()}
    assert (min(batches), max(batches)) == (1, 160)
    assert {case.has_cls for case in cuda_cases() if case.S == 729} == {False}


class Recorder:
    """Stands for the GPU: notes what happens in which order."""

    def __init__(self) -> None:
        self.happened: list[str] = []

    def event(self, enable_timing: bool) -> SimpleNamespace:
        assert enable_timing
        number = sum(word.startswith("new") for word in self.happened)
        name = ("start", "end")[number % 2]
        self.happened.append(f"new {name}")
        return SimpleNamespace(
            record=lambda: self.happened.append(name),
            synchronize=lambda: self.happened.append(f"wait for {name}"),
            elapsed_time=lambda other: 2.5,
        )


@pytest.fixture
def event_timer(monkeypatch):
    """On no GPU; with what it noted."""
    gpu = Recorder()
    properties = SimpleNamespace(L2_cache_size=1 << 20, total_memory=1 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    monkeypatch.setattr(timers, "LEAST_FLUSH_BYTES", 1 << 20)
    return timers.EventTimer(CPU), gpu


def test_events_stand_around_the_call_alone_and_the_cache_is_cold(event_timer):
    timer, gpu = event_timer
    assert timer._buffer.nbytes == 4 * timer.cache_bytes
    timer._buffer = SimpleNamespace(sum=lambda: gpu.happened.append("flush"))
    assert timer.seconds(lambda: gpu.happened.append("call")) == 2.5e-3
    assert gpu.happened == ["new start", "new end", "flush", "start", "call", "end", "wait for end"]
    assert timer.own_seconds() == 2.5e-3


@pytest.mark.parametrize(
    ("cache_bytes", "total_memory", "flushed"),
    [
        (50 << 20, 80 << 30, 2 << 30),
        (6 << 20, 4 << 30, 1 << 30),  # no more than a quarter of a small GPU's memory
        (1 << 30, 80 << 30, 4 << 30),
    ],
)
def test_what_is_read_to_flush_the_cache(monkeypatch, cache_bytes, total_memory, flushed):
    """Nothing is allocated."""
    properties = SimpleNamespace(L2_cache_size=cache_bytes, total_memory=total_memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert timers.EventTimer(torch.device("meta"))._buffer.nbytes == flushed


def test_a_graph_is_recorded_once_and_its_result_is_of_a_replay(monkeypatch):
    """Capture and replay are stood for by a context that records, and by the call itself."""
    case = quick_cases()[0]
    inputs = case.inputs(CPU, 0)
    calls: list[str] = []
    tokens = torch.zeros(2)

    def call():
        calls.append("call")
        return tokens.fill_(1)

    class Graph:
        def __enter__(self):
            calls.append("record")

        def __exit__(self, *_):
            calls.append("recorded")

        def replay(self):
            calls.append("replay")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: graph)
    monkeypatch.setattr(providers, "_warm_up", lambda call: calls.append("warm up"))
    replay = providers.in_cuda_graph(lambda case, inputs: call)(case, inputs)
    assert calls == ["warm up", "record", "call", "recorded"]
    assert replay() is tokens
    assert calls[4:] == ["replay"]
    assert tokens.isnan().all()  # nothing was replayed, and that shows


FLOAT32 = [case for case in quick_cases() if case.dtype == torch.float32]


@pytest.mark.parametrize(
    "case", [case for case in FLOAT32 if providers.is_for("compiled", case, "cuda")], ids=lambda case: case.name
)
def test_the_compiled_form_is_one_graph(monkeypatch, case):
    """As Dynamo sees it; what the GPU's compiler makes of that takes a GPU."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch.compiler.reset()
    counters.clear()
    inputs = case.inputs(CPU, 0)
    for _ in range(2):  # as it is and to be recorded: compiled once
        call = providers.compiled(pytorch_forms.best)(case, inputs)
        torch.testing.assert_close(call(), pytorch_forms.released(case, inputs))
    assert counters["stats"]["unique_graphs"] == 1


@pytest.fixture
def no_gpu_but(monkeypatch):
    """The command believes in a GPU; it gets the CPU."""
    monkeypatch.setattr(command, "why_not", lambda options, cases: None)
    monkeypatch.setattr(command, "timer_for", lambda device: timers.HostTimer())
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))

    def no_graphs(*_):
        raise RuntimeError("no GPU to record for")

    monkeypatch.setattr(providers, "_warm_up", no_graphs)


@pytest.mark.usefixtures("no_gpu_but")
def test_command(tmp_path, capsys):
    """All providers that need no GPU are measured, and the others are told; a failure of ours fails."""
    output = tmp_path / "out.json"
    options = ["--device", "cuda", "--quick", "--filter", "zip/tiny/B2/k5-m3/float32", "--output", str(output)]
    assert command.main(options) == 1
    told = capsys.readouterr().out
    (case,) = json.loads(output.read_text())["cases"]
    assert case["seconds"].keys() == {"ours", "released", "compiled", "copy"}
    assert case["failures"].keys() == {"ours-graph", "compiled-graph"}
    assert case["ratios"].keys() == {"released", "compiled", "copy"}
    assert "of a copy" in told
    assert f"not measured: ours-graph: RuntimeError: no GPU to record for ({case['name']})" in told
    assert output.with_suffix(".png").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the error is for machines without a GPU")
def test_without_a_gpu(capsys):
    assert command.main(["--device", "cuda"]) == 2
    assert "--device cuda: torch sees no GPU" in capsys.readouterr().out


def test_list(capsys):
    assert command.main(["--device", "cuda", "--list"]) == 0
    assert capsys.readouterr().out.split() == [case.name for case in cuda_cases()]


def test_bytes_of_the_largest_case():
    """160 images: about 0.4 GB, a multiple of any cache."""
    largest = Case("m", "zip", B=160, S=577, C=1024, H=16, D=64, k=54, m=10, dtype=torch.bfloat16)
    assert 350e6 < largest.bytes_moved < 450e6
