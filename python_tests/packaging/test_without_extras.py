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
    assert last.startswith(f"{error}: visionzip_ext.compress needs transformers, which cannot be imported: ")
    assert "pip install 'visionzip_ext[transformers]'" in last


def test_with_transformers_everything_is_listed():
    code = "from visionzip_ext import *; import visionzip_ext; compress; assert 'compress' in dir(visionzip_ext)"
    result = run(code, absent=())
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("absent", ["numpy", "transformers"])
def test_the_demo_names_its_extra(absent):
    result = run("from visionzip_ext.__main__ import main; sys.exit(main(['demo']))", (absent,))
    assert result.returncode == 2
    (complaint,) = result.stderr.splitlines()
    assert complaint.startswith("visionzip_ext demo: ")
    assert absent in complaint
    assert complaint.endswith("install what the demo needs with `pip install 'visionzip_ext[demo]'`")
