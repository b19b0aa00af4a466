"""What torch does not document is used in one file, which says at once, and clearly, where a torch lacks it."""

from __future__ import annotations

import ast
import importlib.util
import re
from operator import attrgetter
from pathlib import Path

import pytest
import torch

from visionzip_ext._registration import torch_private

PACKAGE = Path(torch_private.__file__).parents[1]
NAMES = re.findall(r'_private\("([\w.]+)"\)', Path(torch_private.__file__).read_text())


def import_again() -> None:
    spec = importlib.util.spec_from_file_location("torch_private_again", torch_private.__file__)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize("name", NAMES)
def test_this_torch_has_it(name):
    attrgetter(name)(torch)


@pytest.mark.parametrize("name", NAMES)
def test_a_torch_without_it_is_told_so(monkeypatch, name):
    owner, _, last = name.rpartition(".")
    monkeypatch.delattr(attrgetter(owner)(torch), last)
    expected = re.escape(f"visionzip_ext uses torch.{name}, a private name that torch {torch.__version__} lacks")
    with pytest.raises(ImportError, match=expected):
        import_again()


def private_names(source: str) -> set[str]:
    """Dotted names below torch, imported or used, with a part that begins with one underscore."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "torch"}
        elif isinstance(node, ast.Attribute) and re.match(r"(torch|forward_ad|_pytree)\.", ast.unparse(node)):
            found.add(ast.unparse(node))
    documented = {"torch._check"}
    return {name for name in found - documented if re.search(r"\b_(?!_)", name)}


def test_private_names_are_recognised():
    source = (
        "import torch._dynamo\nfrom torch.utils import _pytree\ntorch._C.f(torch._check(x), torch.ops.visionzip.zip)"
    )
    assert private_names(source) == {"torch._dynamo", "torch.utils._pytree", "torch._C", "torch._C.f"}


def test_only_one_file_uses_private_names():
    users = {path: private_names(path.read_text()) for path in PACKAGE.rglob("*.py")}
    del users[Path(torch_private.__file__)]
    assert {path.name: names for path, names in users.items() if names} == {}
