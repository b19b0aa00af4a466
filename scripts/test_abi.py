"""Runs the libraries, exactly as built against the pinned torch, under the newest torch: ``make test-abi``.

The newest torch (its CUDA build, where the package index has one: 5 GB) and the package go into an environment of their
own, .venv-abi.  There the CUDA library must load and bring its kernels, with or without a GPU, and the operator tests
must pass on the CPU.
"""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv-abi"
PYTHON = ENVIRONMENT / "bin" / "python"

CHECK_REGISTRATION = """
import torch
import visionzip_ext
from visionzip_ext import _library

print("torch", torch.__version__, "CUDA", torch.version.cuda)
assert torch.version.cuda is not None, "this torch has no CUDA, so the CUDA library cannot be tried"
assert _library.cuda_library_loaded, _library.cuda_library_error
# Exactly these keys: the fallback in Python is registered for a composite one, and does not count.
for key in ("CPU", "CUDA"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key("visionzip::merge", key), f"no kernel of ours for {key}"
print("merge has kernels for CPU and CUDA")
"""


def run(*command, cwd=ROOT):
    """Run a command; end here if it fails."""
    print("$", *(part for part in map(str, command) if "\n" not in part), flush=True)
    status = subprocess.run(list(map(str, command)), cwd=cwd).returncode
    if status != 0:
        sys.exit(status)


def main():
    """Make the environment anew, so that "newest" is true, and run all checks in it."""
    if ENVIRONMENT.exists():
        shutil.rmtree(ENVIRONMENT)
    run(sys.executable, "-m", "venv", ENVIRONMENT)
    run(PYTHON, "-m", "pip", "install", "--quiet", "--upgrade", "torch", "-r", "requirements/test.txt", "rich")
    # The libraries are not built again: the package travels as it stands in the source tree.
    (site_packages,) = ENVIRONMENT.glob("lib/python*/site-packages")
    shutil.copytree(ROOT / "visionzip_ext", site_packages / "visionzip_ext")
    run(PYTHON, "-c", CHECK_REGISTRATION, cwd=ENVIRONMENT)
    run(PYTHON, "-m", "visionzip_ext", "info", cwd=ENVIRONMENT)
    tests = sorted((ROOT / "python_tests").glob("test_ops*.py"))
    # The emulated CUDA kernels are built by the source tree's environment; torch's version makes no difference to them.
    options = ("--numprocesses", "auto", "-k", "not emulated")
    run(PYTHON, "-m", "pytest", "--rootdir", ROOT, "-c", ROOT / "pyproject.toml", *options, *tests, cwd=ENVIRONMENT)


if __name__ == "__main__":
    main()
