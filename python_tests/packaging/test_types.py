"""The types that the package promises: those of `_C` are the module's own, and a wheel says that there are any."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import visionzip_ext
from visionzip_ext import _C

PACKAGE = Path(visionzip_ext.__file__).parent


def stub() -> dict[str, ast.FunctionDef]:
    tree = ast.parse((PACKAGE / "_C.pyi").read_text())
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_stub_lists_the_module_s_functions():
    assert set(stub()) == {name for name in dir(_C) if callable(getattr(_C, name)) and not name.startswith("_")}


def test_the_stub_s_arguments_are_the_module_s():
    for name, function in stub().items():
        signature = re.match(rf"{name}\((.*)\) -> ", getattr(_C, name).__doc__)[1]
        arguments = [*function.args.args, *function.args.kwonlyargs]
        assert [argument.arg for argument in arguments] == re.findall(r"(\w+): ", re.sub(r"\[.*?\]", "", signature))


def test_the_package_is_marked_as_typed():
    assert (PACKAGE / "py.typed").exists()
