"""What the documentation names exists: make targets, modules, extras, files, and attributes of the package."""

from __future__ import annotations

import importlib
import importlib.util
import re

import pytest
from support.pages import PAGES, ROOT, Page

# The history tells of names that are no more.
_PRESENT = [page for page in PAGES if page.path.name != "CHANGELOG.md"]
_FOLDERS = (
    "benchmarks",
    "cmake",
    "csrc",
    "docs",
    "evaluation",
    "python_tests",
    "requirements",
    "tools",
    "visionzip_ext",
)
_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
_EXTRAS = set(re.findall(r"^(\w+) = \[\"", (ROOT / "pyproject.toml").read_text(), re.M))


def _commands(page: Page) -> list[str]:
    return [*page.shell_lines, *page.code_spans]


@pytest.mark.parametrize("page", _PRESENT, ids=str)
def test_make_targets_exist(page: Page):
    named = {target for command in _commands(page) for target in re.findall(r"^make ([a-z-]+)", command)}
    assert named <= _TARGETS


@pytest.mark.parametrize("page", _PRESENT, ids=str)
def test_modules_that_are_run_exist(page: Page):
    named = {module for command in _commands(page) for module in re.findall(r"python -m ([\w.]+)", command)}
    assert not {module for module in named if importlib.util.find_spec(module) is None}


@pytest.mark.parametrize("page", _PRESENT, ids=str)
def test_extras_exist(page: Page):
    named = {extra for command in _commands(page) for extra in re.findall(r"(?:\.|visionzip_ext)\[(\w+)\]", command)}
    assert named <= _EXTRAS


@pytest.mark.parametrize("page", _PRESENT, ids=str)
def test_files_exist(page: Page):
    path = re.compile(rf"(?:^|(?<=\s))(?:{'|'.join(_FOLDERS)})/[\w./*-]*")
    named = {found.rstrip("/.") for command in _commands(page) for found in path.findall(command)}
    made_by_running = {"benchmarks/results/*.json"}
    assert not {name for name in named - made_by_running if not list(ROOT.glob(name))}


@pytest.mark.parametrize("page", _PRESENT, ids=str)
def test_attributes_of_the_package_exist(page: Page):
    for span in page.code_spans:
        for dotted in re.findall(r"(?<![\w.`-])visionzip_ext((?:\.\w+)+)(?![\w]*\.so)", span):
            found = importlib.import_module("visionzip_ext")
            for name in dotted[1:].split("."):
                assert hasattr(found, name) or importlib.util.find_spec(f"{found.__name__}.{name}"), span
                found = getattr(found, name, None) or importlib.import_module(f"{found.__name__}.{name}")
