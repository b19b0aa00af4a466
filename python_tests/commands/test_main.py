"""`python -m visionzip_ext` alone."""

from __future__ import annotations

from visionzip_ext import __main__ as program


def test_alone_it_shows_its_commands(capsys):
    assert program.main([]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    commands = [line.split()[0] for line in output.splitlines() if line.startswith("    ") and len(line.split()) > 2]
    assert {"info", "demo", "tune"} <= set(commands)
