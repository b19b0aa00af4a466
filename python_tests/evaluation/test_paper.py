"""lmms-eval's results beside the paper's table."""

from __future__ import annotations

import json

import pytest

from evaluation import paper
from evaluation.__main__ import main

LAST = {
    "gqa": {"exact_match,none": 0.6, "exact_match_stderr,none": 0.1},
    "mme": {"mme_perception_score,none": 1500.0, "mme_cognition_score,none": 300.0},
    "mmbench_en_dev_static": {"gpt_eval_score,none": 64.0},
}


def write(folder, time, arguments, results, model="visionzip_llava_hf"):
    path = folder / "checkpoint" / f"{time}_results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"config": {"model": model, "model_args": arguments}, "results": results}))


def test_the_papers_averages_follow_from_its_figures():
    """So that no figure was copied wrong without being seen."""
    full = paper.PUBLISHED[paper.ALL_TOKENS]
    for tokens, published in paper.PUBLISHED_AVERAGES.items():
        kept = [100 * few / own for few, own in zip(paper.PUBLISHED[tokens], full, strict=True)]
        assert sum(kept) / len(kept) == pytest.approx(published, abs=0.05)


def test_results_are_read_by_budget(tmp_path):
    write(tmp_path, "20260101_000000", "pretrained=x,dominant=54,contextual=10", {"gqa": {"exact_match,none": 0.1}})
    write(tmp_path, "20260101_000001", "pretrained=x,dominant=54,contextual=10", LAST)
    write(tmp_path, "20260101_000002", "pretrained=x,compress=False", {"gqa": {"exact_match,none": 0.62}})
    write(tmp_path, "20260101_000003", "pretrained=x", {"pope": {"pope_f1_score,none": 0.86}}, model="llava_hf")
    write(tmp_path, "20260101_000004", {"pretrained": "x", "dominant": 14, "contextual": 2}, {"gqa": {}})
    found = paper.read(tmp_path)
    assert found.checkpoint == "x"
    assert found.scores == {
        64: {"GQA": 60.0, "MME": 1800.0, "MMB": 64.0},
        576: {"GQA": 62.0, "POPE": 86.0},
        16: {},
    }


def test_the_table_has_what_is_kept_of_both():
    lines = paper.table({576: {"GQA": 60.0, "MME": 2000.0}, 64: {"GQA": 54.0, "MME": 1900.0, "SQA": 70.0}}).splitlines()
    cells = {tuple(line.split(" | ")[:2]): line.strip("| ").split(" | ") for line in lines}
    assert cells["| 64", "paper, % kept"][2:5] == ["89.0", "92.9", "90.8"]
    assert cells["| 64", "paper, % kept"][-1] == "94.0"
    assert cells["| 64", "measured, % kept"][2:5] == ["90.0", "", "95.0"]
    assert cells["| 64", "measured, % kept"][-1] == "92.5 (of 2)"
    assert ("| 128", "measured") not in cells


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([], "no *_results.json"),
        ([("pretrained=x", LAST), ("pretrained=y", LAST)], "several checkpoints: x, y"),
        ([("pretrained=x,keep=0.1", LAST)], "keep=0.1"),
    ],
)
def test_what_does_not_fit_the_table_is_said(tmp_path, capsys, runs, words):
    for number, (arguments, results) in enumerate(runs):
        write(tmp_path, f"2026010{number}_000000", arguments, results)
    assert main(["compare-paper", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


def test_another_file_is_named(tmp_path, capsys):
    (tmp_path / "a_results.json").write_text("{}")
    assert main(["compare-paper", str(tmp_path)]) == 2
    assert "a_results.json is not of lmms-eval" in capsys.readouterr().err


def test_the_table_is_told(tmp_path, capsys):
    write(tmp_path, "20260101_000001", "pretrained=x,dominant=54,contextual=10", LAST)
    assert main(["compare-paper", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "measured: x" in told
    assert "| 64 | measured | 60.0 | 64.0 | 1800.0 |" in told
