"""The import graph of visionzip_ext has no circle and no arrow up: the layers are in pyproject.toml."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINT_IMPORTS = Path(sysconfig.get_path("scripts"), "lint-imports")


@pytest.fixture
def package(tmp_path):
    """A copy of the Python files and of the layers."""
    shutil.copytree(ROOT / "visionzip_ext", tmp_path / "visionzip_ext", ignore=shutil.ignore_patterns("*.so"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path / "visionzip_ext"


def lint(package: Path) -> tuple[int, str]:
    command = [LINT_IMPORTS, "--no-cache"]
    result = subprocess.run(command, cwd=package.parent, capture_output=True, text=True)
    return result.returncode, " ".join((result.stdout + result.stderr).split())


def test_imports_keep_to_the_layers(package):
    status, output = lint(package)
    assert status == 0, output


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("ops.py", "from visionzip_ext.tokens import allocation", "visionzip_ext.ops is not allowed to import"),
        ("reference.py", "from visionzip_ext import packed_reference", "visionzip_ext.reference is not allowed to"),
        ("tokens/budget.py", "import transformers", "visionzip_ext.tokens is not allowed to import transformers"),
        ("new_module.py", "", "visionzip_ext.new_module"),
    ],
)
def test_an_arrow_up_is_found(package, file, line, complaint):
    with open(package / file, "a") as source:
        source.write(f"\n{line}\n")
    status, output = lint(package)
    assert status == 1
    assert complaint in output


def imports_of_the_package_itself(source: str) -> list[str]:
    """Of visionzip_ext/__init__.py, which imports the modules: a circle that import-linter does not see."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name == "visionzip_ext"]
        elif isinstance(node, ast.ImportFrom) and node.module == "visionzip_ext":
            modules = {"_C", *(path.stem for path in (ROOT / "visionzip_ext").iterdir())}
            found += [alias.name for alias in node.names if alias.name not in modules]
    return found


def test_no_module_imports_the_package_itself():
    for path in (ROOT / "visionzip_ext").rglob("*.py"):
        assert imports_of_the_package_itself(path.read_text()) == [], path
    assert imports_of_the_package_itself("import visionzip_ext\nfrom visionzip_ext import zip_qk, ops") == [
        "visionzip_ext",
        "zip_qk",
    ]
