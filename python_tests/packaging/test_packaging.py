"""The three ways to install, each into an environment of its own, and what the built libraries hold."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import tarfile
from functools import cached_property
from pathlib import Path

import pytest
import torch

import visionzip_ext
from tools.kernel_report.library import find_program
from visionzip_ext import _C

ROOT = Path(__file__).resolve().parents[2]
NOT_SOURCES = shutil.ignore_patterns(".*", "build", "dist", "*.so", "*.egg-info", "__pycache__", "shared")
CUDA_ARCHITECTURE = "90"
# Where the Makefile puts it on a machine without one: among this environment's packages, where the tests' do not look.
NVCC = Path(sysconfig.get_path("purelib"), "nvidia", "cu13", "bin")

# Where a build for users would have no CUDA library, this one has none either.
HAS_NVCC = _C.build_info()["cuda"]
needs_nvcc = pytest.mark.skipif(not HAS_NVCC, reason="this machine has no nvcc, so no CUDA library is built")


def run(*command, cwd, **environment):
    """Run a command with the development environment's programs; return what it printed."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"], str(NVCC)])
    result = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, "PATH": path, "PYTHONPATH": "", **environment},  # packages of these environments alone
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout}"
    return result.stdout


class Environment:
    """A virtual environment that sees the packages of this one, torch above all, but not visionzip_ext."""

    def __init__(self, folder: Path):
        run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
        self.folder = folder
        self.python = folder / "bin" / "python"
        # A folder that a .pth file names has its own .pth files ignored, so an editable install does not show through.
        (self.site_packages / "development.pth").write_text(sysconfig.get_path("purelib") + "\n")

    @property
    def site_packages(self) -> Path:
        (found,) = self.folder.glob("lib/python*/site-packages")
        return found

    def install(self, *what, **environment):
        # --ignore-installed: pip must not think of uninstalling the development environment's own.
        options = ["--no-build-isolation", "--no-deps", "--no-index", "--ignore-installed"]
        run(self.python, "-m", "pip", "install", *options, *what, cwd=self.folder, **environment)

    def run_python(self, code: str) -> str:
        return run(self.python, "-c", code, cwd=self.folder)

    @cached_property
    def package(self) -> Path:
        return Path(self.run_python("import visionzip_ext; print(visionzip_ext.__file__)").splitlines()[-1]).parent

    def check_works(self):
        """The operators run, from this package's own kernels, and `info` speaks for it.  Returns info's facts."""
        self.run_python(
            "import torch, visionzip_ext\n"
            "x = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])\n"
            "merged = torch.ops.visionzip.merge(x, torch.tensor([[0, 1, 1]]), 1, 1)\n"
            "assert merged.tolist() == [[[1.0, 2.0], [8.0, 10.0]]], merged\n"
            "assert torch._C._dispatch_has_kernel_for_dispatch_key('visionzip::merge', 'CPU')\n"
        )
        facts = json.loads(run(self.python, "-m", "visionzip_ext", "info", "--json", cwd=self.folder))
        assert facts["version"] == visionzip_ext.__version__
        assert Path(facts["package"]) == self.package
        assert facts["torch"]["version"] == torch.__version__
        assert facts["build"]["torch_version"] == torch.__version__
        return facts


def python_files(package: Path) -> set[str]:
    """Types among them."""
    found = (path for pattern in ("*.py", "*.pyi", "py.typed") for path in package.rglob(pattern))
    return {str(path.relative_to(package)) for path in found}


def libraries(package: Path) -> set[str]:
    return {path.name for path in package.rglob("*.so")}


def expected_libraries(cuda: bool) -> set[str]:
    extension = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    return {extension, "libvisionzip_cpu.so"} | ({"libvisionzip_cuda.so"} if cuda else set())


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the sources, so that the development build stays as it is."""
    folder = tmp_path_factory.mktemp("source") / "visionzip_ext"
    shutil.copytree(ROOT, folder, ignore=NOT_SOURCES)
    return folder


@pytest.fixture(scope="module")
def installed(source, tmp_path_factory) -> Environment:
    """`pip install .`, with the CUDA library where this machine can build it."""
    environment = Environment(tmp_path_factory.mktemp("installed") / "venv")
    environment.install(source, VISIONZIP_CUDA_ARCHS=CUDA_ARCHITECTURE, VISIONZIP_WITH_CUDA="AUTO")
    return environment


@pytest.fixture(scope="module")
def editable(source, installed, tmp_path_factory) -> Environment:
    """`pip install -e .` after it, from the same folder: nothing has changed that would need compiling."""
    environment = Environment(tmp_path_factory.mktemp("editable") / "venv")
    environment.install("-e", source, VISIONZIP_CUDA_ARCHS=CUDA_ARCHITECTURE, VISIONZIP_WITH_CUDA="AUTO")
    return environment


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, source, cwd=folder)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def test_install(installed, source):
    facts = installed.check_works()
    package = installed.package
    assert package == installed.site_packages / "visionzip_ext"
    assert python_files(package) == python_files(source / "visionzip_ext")
    assert libraries(package) == expected_libraries(cuda=HAS_NVCC)
    assert facts["cuda"]["built"] == facts["build"]["cuda"] == HAS_NVCC
    assert facts["build"]["build_type"] == "Release"
    assert facts["build"]["git_revision"] == "unknown"  # the copy has no history
    assert {path.name for path in installed.site_packages.glob("*") if path.suffix != ".pth"} == {
        "visionzip_ext",
        f"visionzip_ext-{visionzip_ext.__version__}.dist-info",
    }


def test_editable_install(editable, source):
    editable.check_works()
    assert editable.package == source / "visionzip_ext"
    assert libraries(source / "visionzip_ext") == expected_libraries(cuda=HAS_NVCC)


def test_sdist_holds_what_a_build_needs(sdist, source):
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    needed = {"CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml", "setup.py"}
    for folder in (
        "benchmarks",
        "cmake",
        "csrc",
        "evaluation",
        "python_tests",
        "requirements",
        "tools",
        "visionzip_ext",
    ):
        needed |= {str(path.relative_to(source)) for path in (source / folder).rglob("*") if path.is_file()}
    assert {name for name in needed if not name.endswith((".so", ".pyc"))} - names == set()
    assert [name for name in names if name.endswith((".so", ".o"))] == []


# Where there is one, so that both compilers build the sources.
CLANG = {"CC": "clang", "CXX": "clang++"} if shutil.which("clang++") else {}


def test_sdist_to_wheel_to_install(sdist, tmp_path):
    """Through a wheel, without CUDA, as on a machine without nvcc; a debug build, because it is soon compiled."""
    run(
        *(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index"),
        *("--wheel-dir", tmp_path, sdist),
        cwd=tmp_path,
        VISIONZIP_WITH_CUDA="OFF",
        VISIONZIP_BUILD_TYPE="Debug",
        **CLANG,
    )
    (wheel,) = tmp_path.glob("*.whl")
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert wheel.name.startswith(f"visionzip_ext-{visionzip_ext.__version__}-{tag}-{tag}-linux_")
    environment = Environment(tmp_path / "venv")
    environment.install(wheel)
    facts = environment.check_works()
    assert libraries(environment.package) == expected_libraries(cuda=False)
    assert facts["cuda"]["built"] is False
    assert facts["cuda"]["reason"] == "not built: it was built with VISIONZIP_WITH_CUDA=OFF"
    assert facts["build"]["cuda_architectures"] == []
    assert facts["build"]["build_type"] == "Debug"


# --- nvcc -------------------------------------------------------------------------------------------------------------


def configure(source: Path, build: Path, **environment) -> str:
    """CMake's first step alone; returns what it printed."""
    options = ("-S", source, "-B", build, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}")
    return run("cmake", *options, cwd=build, **environment)


def executable(path: Path, script: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}")
    path.chmod(0o755)
    return str(path)


def test_why_nvcc_does_not_work(source, tmp_path):
    """In nvcc's own words, such as that the C++ compiler is too new for it; `info` repeats them."""
    words = r'host_config.h:137: #error -- "unsupported" \version!'
    script = f"cat >&2 <<'END'\nIn file included from cuda.h:1\n{words}\n1 error\nEND\nexit 1\n"
    nvcc = executable(tmp_path / "nvcc", script)
    printed = configure(source, tmp_path, CUDACXX=nvcc)
    reason = json.loads(re.search(r"CUDA_MISSING_REASON (.*)", (tmp_path / "generated/build_info.h").read_text())[1])
    assert reason.startswith(f"{nvcc}, ")
    assert "CUDAHOSTCXX" in reason
    assert reason.endswith(f": {words}")
    assert f"-- No CUDA library: {reason}\n" in printed


@needs_nvcc
def test_an_nvcc_that_does_not_know_the_newest_gpus(source, tmp_path):
    """PTX of the newest that it knows: GPUs after it compile that."""
    nvcc = Path(os.environ.get("CUDACXX") or find_program("nvcc")).resolve()
    known = "printf 'compute_75\\ncompute_80\\ncompute_90\\n'"
    older = executable(tmp_path / "bin" / "nvcc", f'[ "$*" = --list-gpu-arch ] && {known} || exec {nvcc} "$@"\n')
    (tmp_path / "lib").symlink_to(nvcc.parent.parent / "lib")
    printed = configure(source, tmp_path, CUDACXX=older)
    assert re.search(r"-- CUDA library: nvcc [\d.]+, architectures 75-real 80-real 90\n", printed)
    for gpu in (86, 100, 120):
        assert f"This nvcc cannot compile for {gpu}" in printed


# --- incremental builds -----------------------------------------------------------------------------------------------


def outputs(source: Path) -> dict[str, int]:
    """When each object file and library was last written."""
    found = [*source.glob("build/*/**/*.o"), *source.glob("build/*/*.so"), *source.glob("visionzip_ext/*.so")]
    return {str(path.relative_to(source)): path.stat().st_mtime_ns for path in found}


def build_in_place(source: Path):
    run(
        *(sys.executable, "setup.py", "build_ext", "--inplace"),
        cwd=source,
        VISIONZIP_CUDA_ARCHS=CUDA_ARCHITECTURE,
        VISIONZIP_WITH_CUDA="AUTO",
    )


def test_build_without_a_change_writes_nothing(editable, source):
    build_in_place(source)
    before = outputs(source)
    assert before
    build_in_place(source)
    assert outputs(source) == before


def test_build_after_a_change_compiles_only_what_depends_on_it(editable, source):
    build_in_place(source)
    before = outputs(source)
    with open(source / "csrc/bindings/module.cpp", "a") as file:
        file.write("// changed\n")
    build_in_place(source)
    after = outputs(source)
    changed = {Path(name).name.split(".")[0] for name in before if after[name] != before[name]}
    assert changed == {"module", "_C"}


# --- what the libraries hold ------------------------------------------------------------------------------------------


def symbols(library: Path, *options: str) -> list[tuple[str, str]]:
    """Return (type, name) of every symbol that nm lists."""
    lines = run("nm", *options, library, cwd=library.parent).splitlines()
    fields = [line.split() for line in lines if line and not line.endswith((":", "no symbols"))]
    return [(f[-2], f[-1]) for f in fields]


def dynamic_section(library: Path) -> str:
    return run("readelf", "--dynamic", "--wide", library, cwd=library.parent)


@pytest.mark.parametrize("name", ["libvisionzip_cpu.so", pytest.param("libvisionzip_cuda.so", marks=needs_nvcc)])
def test_operator_libraries_export_nothing(installed, name):
    """torch finds operators by their registration; an exported symbol could only clash with another library's."""
    assert symbols(installed.package / name, "-D", "--defined-only") == []


@pytest.mark.parametrize("name", ["libvisionzip_cpu.so", pytest.param("libvisionzip_cuda.so", marks=needs_nvcc)])
def test_operator_libraries_call_only_the_stable_abi_of_torch(installed, name):
    package = installed.package
    undefined = {symbol for kind, symbol in symbols(package / name, "-D", "--undefined-only") if kind == "U"}
    of_torch = {symbol for symbol in undefined if "@" not in symbol}  # the C and C++ libraries' carry versions
    assert of_torch
    assert [symbol for symbol in of_torch if not symbol.startswith(("aoti_torch_", "torch_"))] == []


def test_no_library_says_where_torch_lies(installed):
    for name in libraries(installed.package):
        section = dynamic_section(installed.package / name)
        assert "RPATH" not in section
        assert "RUNPATH" not in section


def test_c_module_knows_nothing_of_torch(installed):
    (module,) = installed.package.glob("_C.*.so")
    assert "torch" not in dynamic_section(module)


@needs_nvcc
def test_cuda_library_brings_its_own_runtime_and_needs_no_cuda_of_torch(installed):
    section = dynamic_section(installed.package / "libvisionzip_cuda.so")
    assert "libtorch.so" in section
    for absent in ("cudart", "libtorch_cuda", "libc10_cuda", "libcuda.so"):
        assert absent not in section


def fat_binary_contents(library: Path) -> set[tuple[str, int]]:
    """Return what the GPU code in a library is: ("elf" or "ptx", architecture) pairs.

    Read from the fat binaries' headers, because not every machine with nvcc has cuobjdump: after a header (magic, its
    own size, the size of all) comes an entry for each architecture (kind, size of its header, size of its data, ...).
    """
    data = library.read_bytes()
    magic = struct.pack("<IH", 0xBA55ED50, 1)
    contents = set()
    start = data.find(magic)
    while start >= 0:
        header_size, size = struct.unpack_from("<HQ", data, start + 6)
        entry, end = start + header_size, start + header_size + size
        while entry < end:
            kind, entry_header_size, entry_size = struct.unpack_from("<HxxIQ", data, entry)
            (architecture,) = struct.unpack_from("<I", data, entry + 28)
            contents.add(({1: "ptx", 2: "elf"}[kind], architecture))
            entry += entry_header_size + entry_size
        start = data.find(magic, end)
    return contents


@needs_nvcc
def test_cuda_library_holds_the_architectures_asked_for(installed):
    build = json.loads(run(installed.python, "-m", "visionzip_ext", "info", "--json", cwd=installed.folder))["build"]
    assert build["cuda_architectures"] == [CUDA_ARCHITECTURE]
    number = int(CUDA_ARCHITECTURE)
    assert fat_binary_contents(installed.package / "libvisionzip_cuda.so") == {("elf", number), ("ptx", number)}


def test_no_kernel_object_offers_its_code_to_others(installed, source):
    """Of a weak function the linker takes any copy for all: the AVX-512 one would end on a CPU without it."""
    objects = [path for path in source.glob("build/*/**/kernels_*.o") if "baseline" not in path.name]
    if "avx2" in _C.build_info()["instruction_sets"]:
        assert {path.name.split(".")[0] for path in objects} == {
            "kernels_avx2",
            "kernels_avx512",
            "kernels_avx512bf16",
        }
    for path in objects:
        weak = [symbol for kind, symbol in symbols(path, "--defined-only") if kind == "W"]
        assert weak == [], path.name
