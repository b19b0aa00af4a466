"""Without the optional packages the operators work, and what needs one says how to install it."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT = "import sys\nfor name in {absent!r}: sys.modules[name] = None\n"


def run(code: str, absent: tuple[str, ...] = ("transformers",)) -> subprocess.CompletedProcess:
    """In a new process, in which some packages cannot be imported."""
    code = WITHOUT.format(absent=absent) + code
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)


def test_the_package_can_be_looked_at():
    result = run(
        "from visionzip_ext import *; zip_packed; assert 'compress' not in globals()\n"
        "import visionzip_ext, inspect, pydoc\n"
        "assert not hasattr(visionzip_ext, 'compress')\n"
        "assert 'zip' in dict(inspect.getmembers(visionzip_ext))\n"
        "assert 'zip_qk' in pydoc.render_doc(visionzip_ext)\n"
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import visionzip_ext; visionzip_ext.compress(None)", "AttributeError"),
        ("from visionzip_ext import compress", "ImportError"),
    ],
    ids=["attribute", "import"],
)
def test_what_models_need_is_said(code, error):
    last = run(code).stderr.splitlines()[-1]
    assert last.startswith(f"{error}: visionzip_ext.compress needs transformers >= 4.57, < 6, but ")
    assert "is installed, which cannot be used: " in last
    assert "pip install 'visionzip_ext[transformers]'" in last


def test_an_older_transformers_is_named(tmp_path):
    """As LLaVA's repository pins it: 4.37, without what attention is recorded by."""
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").write_text('__version__ = "4.37.2"\n')
    (tmp_path / "transformers-4.37.2.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: transformers\nVersion: 4.37.2\n"
    (tmp_path / "transformers-4.37.2.dist-info" / "METADATA").write_text(metadata)
    code = f"sys.path.insert(0, {str(tmp_path)!r})\nfrom visionzip_ext import visionzip"
    last = run(code, absent=()).stderr.splitlines()[-1]
    assert last.startswith(
        "ImportError: visionzip_ext.visionzip needs transformers >= 4.57, < 6, but 4.37.2 is installed"
    )


def test_no_transformers_is_said():
    code = (
        "import importlib.metadata as metadata\n"
        "def version(name): raise metadata.PackageNotFoundError(name)\n"
        "metadata.version = version\n"
        "from visionzip_ext import compress"
    )
    last = run(code).stderr.splitlines()[-1]
    assert last.startswith(
        "ImportError: visionzip_ext.compress needs transformers >= 4.57, < 6, which is not installed: "
    )


def test_with_transformers_everything_is_listed():
    code = "from visionzip_ext import *; import visionzip_ext; compress; assert 'compress' in dir(visionzip_ext)"
    result = run(code, absent=())
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("command", "absent"), [("demo", "numpy"), ("demo", "transformers"), ("tune", "transformers")])
def test_a_command_names_its_extra(command, absent):
    result = run(f"from visionzip_ext.__main__ import main; sys.exit(main(['{command}']))", (absent,))
    assert result.returncode == 2
    (complaint,) = result.stderr.splitlines()
    assert complaint.startswith(f"visionzip_ext {command}: ")
    assert absent in complaint
    assert complaint.endswith(f"install what the {command} needs with `pip install 'visionzip_ext[{command}]'`")
