"""The benchmark of whole encoders, at small sizes; no absolute time."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # not installed: benchmarks belong to the source tree

from benchmarks import encoder  # noqa: E402
from benchmarks.encoder import MEMORY_GOAL, Cost, goals, measure, rows_alike, table  # noqa: E402
from benchmarks.encoder_memory import peak_bytes, peak_bytes_on_gpu  # noqa: E402
from benchmarks.encoder_providers import (  # noqa: E402
    PROVIDERS,
    encoder_cases,
    ours,
    quick_encoder_cases,
    released,
    twin_of,
)
from visionzip_ext.integrations.transformers.towers.layer_stack import LayerStack  # noqa: E402

QUICK = quick_encoder_cases()


def test_the_promised_cases_are_there():
    cases = encoder_cases()
    assert {(case.tiles, case.k, case.m, case.dtype) for case in cases} == {
        (5, 54, 10, torch.float32),
        (5, 54, 10, torch.bfloat16),
    }
    assert {case.compression(5).S for case in cases} == {577}
    assert {case.dtype for case in encoder_cases("cuda")} == {torch.float32, torch.bfloat16, torch.float16}
    assert {case.device for case in encoder_cases("cuda") + quick_encoder_cases("cuda")} == {"cuda"}
    assert len({case.name for case in cases + QUICK}) == len(cases + QUICK)


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_providers_make_the_cases_tokens(case):
    model = case.encoder()
    with torch.no_grad():
        for provider in PROVIDERS.values():
            call = provider(case, model)
            for tiles in (1, case.tiles):
                tokens = call(case.pixels(tiles))
                assert tokens.shape == (tiles, case.k + case.m, case.channels)
                assert tokens.dtype == case.dtype


def test_both_providers_decide_alike():
    case = replace(QUICK[0], tiles=8)
    model, pixels = case.encoder(seed=3), case.pixels(8, seed=4)
    with torch.no_grad():
        ours, released = (provider(case, model)(pixels) for provider in PROVIDERS.values())
    assert rows_alike(ours, released) >= 0.95
    assert rows_alike(ours, ours.flip(0)) < 0.5


def test_the_released_way_runs_all_layers_and_ours_those_that_are_needed():
    case = QUICK[0]
    model, ran = case.encoder(), []
    for number, layer in enumerate(LayerStack(model).layers):
        layer.register_forward_pre_hook(lambda module, args, number=number: ran.append(number))  # the twins copy hooks
    with torch.no_grad():
        for provider, layers in ((ours, case.layers - 1), (released, case.layers)):
            ran.clear()
            provider(case, model)(case.pixels(1))
            assert ran == list(range(layers))


def test_weights_exist_once():
    model = QUICK[0].encoder()
    twin = twin_of(model)
    assert [id(p) for p in twin.parameters()] == [id(p) for p in model.parameters()]
    twin.set_attn_implementation("eager")
    assert model.config._attn_implementation != "eager"


def test_memory_is_within_the_goal():
    """Here the released way's matrices alone take 64 MB; a measurement that saw nothing would fail, too."""
    case = QUICK[0]
    matrices = case.layers * case.tiles * case.heads * case.compression(1).S ** 2 * case.dtype.itemsize
    peaks = {name: peak_bytes(case, name) for name in PROVIDERS}
    assert peaks["released"] > matrices
    assert 0 < peaks["ours"] <= MEMORY_GOAL * peaks["released"]


def test_memory_on_a_gpu_is_that_of_the_call_alone(monkeypatch):
    """Not of what precedes it: the marks are set and read in this order."""
    happened: list[str] = []
    monkeypatch.setitem(PROVIDERS, "ours", lambda case, model: lambda pixels: happened.append(f"{len(pixels)} tiles"))
    for name, size in (("reset_peak_memory_stats", None), ("memory_allocated", 30), ("max_memory_allocated", 100)):
        monkeypatch.setattr(torch.cuda, name, lambda name=name, size=size: happened.append(name) or size)
    assert peak_bytes_on_gpu(replace(QUICK[0], tiles=3), "ours", QUICK[0].encoder()) == 70
    assert happened == ["1 tiles", "reset_peak_memory_stats", "memory_allocated", "3 tiles", "max_memory_allocated"]


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"nothing like it.*, ours: .*not enough values to unpack"):
        peak_bytes(replace(QUICK[0], model="nothing like it"), "ours")


def cost(ours: float = 1.0, released: float = 2.0, alike: float = 1.0, dtype: torch.dtype = torch.float32) -> Cost:
    case = replace(QUICK[0], dtype=dtype)
    return Cost(case, {"ours": [9.0, ours, ours], "released": [released] * 3}, {"ours": 1, "released": 4}, alike)


def test_ratios_are_of_medians():
    assert cost().time_ratio == 0.5
    assert cost().memory_ratio == 0.25
    assert "0.50 of the released way's (0.65: reached), memory 0.25 (0.2: MISSED)" in goals(cost())
    assert "1.50 of the released way's (0.65: MISSED)" in goals(cost(ours=3.0))


def test_wrong_tokens():
    assert not cost().wrong
    assert cost(alike=0.8).wrong
    assert not cost(alike=0.8, dtype=torch.bfloat16).wrong


def test_table_and_file():
    rows = table([cost(), cost()]).rows
    assert [len(row) for row in rows] == [len(table([]).columns)] * 2
    content = json.loads(json.dumps(cost().as_json()))
    assert content["time_ratio"] == 0.5
    assert content["peak_bytes"] == {"ours": 1, "released": 4}


@pytest.fixture
def without_processes(monkeypatch):
    monkeypatch.setattr(encoder, "peak_bytes", lambda case, provider: {"ours": 1, "released": 7}[provider])


@pytest.mark.usefixtures("without_processes")
def test_measure():
    result = measure(QUICK[1], rounds=2)
    assert {name: len(seconds) for name, seconds in result.seconds.items()} == {"ours": 2, "released": 2}
    assert result.rows_alike > 0.5
    assert result.peak_bytes == {"ours": 1, "released": 7}


@pytest.mark.usefixtures("threads", "without_processes")
def test_the_command(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(encoder, "quick_encoder_cases", lambda device: QUICK[:1])
    file = tmp_path / "encoders.json"
    assert encoder.main(["--quick", "--threads", "1", "--output", str(file)]) == 0
    assert [case["name"] for case in json.loads(file.read_text())["encoder"]] == [QUICK[0].name]
    assert torch.get_num_threads() == 1
    assert QUICK[0].name in capsys.readouterr().out
    monkeypatch.setattr(encoder, "rows_alike", lambda tokens, others: 0.0)
    assert encoder.main(["--quick"]) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="the error is for machines without a GPU")
def test_without_a_gpu(capsys):
    assert encoder.main(["--device", "cuda"]) == 2
    assert "torch sees no GPU" in capsys.readouterr().out
