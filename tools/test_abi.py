"""The package under other versions of torch than the pinned one: ``make test-abi``.

The oldest supported torch and the newest (their CUDA builds, where the package index has them: 5 GB each) go into
environments of their own, in .venv-abi.  The libraries exactly as built against the pinned torch must load in both, the
CUDA library, too, with or without a GPU, and the operator tests must pass on the CPU.  In the oldest, the same for
libraries that are built anew: what that torch's headers lack, no other build can tell.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from visionzip_ext._library import MINIMUM_TORCH

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / ".venv-abi"

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


def run(*command, cwd=ROOT, **environment):
    """Run a command; end here if it fails."""
    print("$", *(part for part in map(str, command) if "\n" not in part), flush=True)
    status = subprocess.run(list(map(str, command)), cwd=cwd, env={**os.environ, **environment}).returncode
    if status != 0:
        sys.exit(status)


class Environment:
    """A virtual environment, made anew, so that "newest" is true."""

    def __init__(self, name, torch):
        """With this torch, and what the operator tests need."""
        self.folder = ENVIRONMENTS / name
        self.python = self.folder / "bin" / "python"
        run(sys.executable, "-m", "venv", "--clear", self.folder)
        self.install("--upgrade", torch, "-r", ROOT / "requirements" / "test.txt", "rich")

    @property
    def package(self):
        """Where the package lies, or will lie."""
        (site_packages,) = self.folder.glob("lib/python*/site-packages")
        return site_packages / "visionzip_ext"

    def install(self, *what, **environment):
        """``pip install``."""
        run(self.python, "-m", "pip", "install", "--quiet", *what, **environment)

    def copy_package(self):
        """The libraries are not built again: the package travels as it stands in the source tree."""
        shutil.copytree(ROOT / "visionzip_ext", self.package)

    def build_package(self):
        """From an sdist, which leaves the source tree's own build alone; for one GPU architecture."""
        shutil.rmtree(self.package)
        archives = self.folder / "sdist"
        run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", archives)
        (archive,) = archives.glob("*.tar.gz")
        self.install("setuptools", "wheel", "cmake", "ninja", "pybind11")
        nvcc = Path(sysconfig.get_path("purelib"), "nvidia", "cu13", "bin")  # where the Makefile may have put it
        self.install(
            *("--no-build-isolation", "--no-deps", archive),
            PATH=os.pathsep.join([str(self.folder / "bin"), os.environ.get("PATH", os.defpath), str(nvcc)]),
            VISIONZIP_WITH_CUDA="ON",
            VISIONZIP_CUDA_ARCHS="90",
        )

    def check(self):
        """The package that is installed."""
        run(self.python, "-c", CHECK_REGISTRATION, cwd=self.folder)
        run(self.python, "-m", "visionzip_ext", "info", cwd=self.folder)
        tests = (ROOT / "python_tests" / "operators", ROOT / "python_tests" / "tokens")
        # The emulated CUDA kernels are built by the source tree's environment; torch's version makes no difference.
        options = ("-q", "--numprocesses", "auto", "-k", "not emulated", "-p", "no:cacheprovider")
        config = ("--rootdir", ROOT, "-c", ROOT / "pyproject.toml")
        run(self.python, "-m", "pytest", *config, *options, *tests, cwd=self.folder, OMP_NUM_THREADS="1")


def main():
    """Everything, one after another."""
    newest = Environment("newest", "torch")
    newest.copy_package()
    newest.check()
    oldest = Environment("oldest", "torch=={}.{}.*".format(*MINIMUM_TORCH))
    oldest.copy_package()
    oldest.check()
    oldest.build_package()
    oldest.check()


if __name__ == "__main__":
    main()
