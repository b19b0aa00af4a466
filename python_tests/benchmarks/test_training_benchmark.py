"""The benchmark of training: it runs, on tiny sizes, and its table has both variants."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # not installed: benchmarks belong to the source tree

from benchmarks import training
from visionzip_ext.demo import random_llava


def test_both_variants_are_measured(monkeypatch, capsys):
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    monkeypatch.setattr(random_llava, "_VISION", random_llava._VISION | small)
    monkeypatch.setattr(random_llava, "_LANGUAGE", random_llava._LANGUAGE | small)
    monkeypatch.setenv("COLUMNS", "100")
    training.main(["--steps", "2"])
    rows = [line for line in capsys.readouterr().out.splitlines() if "tokens " in line or "54 + 10" in line]
    assert any("all tokens" in row and "100 %" in row for row in rows)
    assert any("54 + 10" in row for row in rows)


def test_shares_are_of_all_tokens():
    rows = training.table({"all": training.Measured(2.0, 400 << 20), "few": training.Measured(0.5, 100 << 20)})
    assert [list(column.cells)[1] for column in rows.columns] == ["few", "0.50", "25 %", "100", "25 %"]
