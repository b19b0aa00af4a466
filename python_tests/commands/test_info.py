"""`python -m visionzip_ext info`: what it says, in both forms."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from visionzip_ext import _C, _library, info


def run_info(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "visionzip_ext", "info", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_json_is_all_that_stdout_holds():
    result = run_info("--json")
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["python"] == platform.python_version()
    assert facts["torch"] == {"version": torch.__version__, "cuda": torch.version.cuda}
    assert facts["build"] == _C.build_info()
    assert facts["cpu"]["loaded"] is True
    assert facts["cuda"]["loaded"] == _library.cuda_library_loaded


def test_table_names_the_facts():
    result = run_info(COLUMNS="200")
    assert result.returncode == 0, result.stderr
    build = _C.build_info()
    for fact in (build["version"], build["compiler"], torch.__version__, _C.cpu_isa(), platform.python_version()):
        assert fact in result.stdout
    assert "libvisionzip_cpu.so: built, loaded" in result.stdout


def test_instruction_set_can_be_forced():
    first = _C.build_info()["instruction_sets"][0]  # which every CPU of the kind that was built for has
    facts = json.loads(run_info("--json", VISIONZIP_CPU_ISA=first).stdout)
    assert facts["cpu"]["instruction_set"] == first


def test_an_empty_instruction_set_is_none():
    unset, empty = (json.loads(run_info("--json", **forced).stdout) for forced in ({}, {"VISIONZIP_CPU_ISA": ""}))
    assert empty["cpu"] == unset["cpu"]


def test_unknown_instruction_set_is_named():
    result = run_info("--json", VISIONZIP_CPU_ISA="mmx")
    assert result.returncode != 0
    assert 'VISIONZIP_CPU_ISA is "mmx"' in result.stderr


def test_instruction_set_in_use_was_built():
    assert _C.cpu_isa() in _C.build_info()["instruction_sets"]


def test_build_info_is_complete():
    build = _C.build_info()
    assert build["torch_target"] == "2.10"
    assert build["git_revision"]
    if build["cuda"]:
        assert build["cuda_missing_reason"] == ""
        assert build["cuda_architectures"]
        assert int(build["cuda_version"].split(".")[0]) >= 12
    else:
        assert build["cuda_missing_reason"]
        assert build["cuda_architectures"] == []


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        (["80-real"], (8, 0), True),
        (["80-real"], (8, 6), True),  # machine code runs on later minor versions
        (["86-real"], (8, 0), False),  # not on earlier ones
        (["80-real"], (9, 0), False),  # nor on another major version
        (["80-virtual"], (9, 0), True),  # PTX runs on all that come after
        (["80"], (12, 0), True),
        (["90"], (8, 9), False),
        (["90a-real"], (9, 0), True),
        (["90a"], (10, 0), False),  # one GPU's own instructions, PTX or not
        (["100f"], (10, 3), True),
        (["100f"], (12, 0), False),
        (["75-real", "90-real"], (9, 0), True),
        ([], (9, 0), False),
    ],
)
def test_runs_on(architectures, capability, expected):
    assert info.runs_on(architectures, capability) is expected


def test_wheels_run_on_every_gpu_since_turing():
    cmake = (Path(__file__).resolve().parents[2] / "cmake" / "CudaCompiler.cmake").read_text()
    wheels = re.search(r"set\(default_architectures ([^)]*)\)", cmake).group(1).split()
    capabilities = [(7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1), (13, 0)]
    assert [c for c in capabilities if not info.runs_on(wheels, c)] == []
    assert not info.runs_on(wheels, (7, 0))


def test_reason_without_cuda_library_tells_the_cause(monkeypatch, tmp_path):
    def reason(**build):
        return info._why_no_cuda_library({"cuda": True, "cuda_missing_reason": "", **build})

    present = tmp_path / "libvisionzip_cuda.so"
    present.touch()
    monkeypatch.setattr(_library, "cuda_library_loaded", False)
    monkeypatch.setattr(_library, "CUDA_LIBRARY", present)
    assert reason(cuda=False, cuda_missing_reason="no nvcc was found") == "not built: no nvcc was found"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert reason() == "built, not loaded: this torch has no CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_library, "cuda_library_error", "undefined symbol: x")
    assert reason() == "built, but cannot be loaded: undefined symbol: x"
    monkeypatch.setattr(_library, "CUDA_LIBRARY", tmp_path / "absent.so")
    assert reason().startswith("built, but missing from ")
    monkeypatch.setattr(_library, "cuda_library_loaded", True)
    assert reason() is None


def test_torch_that_is_too_old_is_an_import_error():
    with pytest.raises(ImportError, match=r"needs torch 2\.10 or later; this is torch 2\.9\.1\+cu128"):
        _library._require_torch("2.9.1+cu128")
    _library._require_torch("2.10.0a0+gitabc")
    _library._require_torch("3.0.0")


def test_missing_cpu_library_is_an_import_error(monkeypatch, tmp_path):
    monkeypatch.setattr(_library, "CPU_LIBRARY", tmp_path / "libvisionzip_cpu.so")
    with pytest.raises(ImportError, match=r"not built: libvisionzip_cpu\.so is missing.*pip install"):
        _library.load()


def test_broken_cpu_library_is_an_import_error(monkeypatch, tmp_path):
    broken = tmp_path / "libvisionzip_cpu.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(_library, "CPU_LIBRARY", broken)
    with pytest.raises(ImportError, match=r"cannot be loaded under torch .* Build visionzip_ext again"):
        _library.load()


def test_broken_cuda_library_is_a_warning_and_remembered(monkeypatch, tmp_path):
    broken = tmp_path / "libvisionzip_cuda.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(_library, "CUDA_LIBRARY", broken)
    monkeypatch.setattr(_library, "cuda_library_loaded", False)
    monkeypatch.setattr(_library, "cuda_library_error", None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.warns(RuntimeWarning, match="reference path"):
        _library.load()
    assert not _library.cuda_library_loaded
    assert "libvisionzip_cuda.so" in _library.cuda_library_error


@pytest.mark.parametrize("driver", [None, 13000, 13010, 14000])
def test_a_driver_of_the_same_cuda_or_a_later_one_will_do(driver):
    _library._require_driver(driver, "13.0.88")


def test_a_driver_that_is_too_old_is_a_warning_and_remembered(monkeypatch, tmp_path):
    """Else every operator would raise: the library brings its own CUDA runtime, which torch's own need not be."""
    library = tmp_path / "libvisionzip_cuda.so"
    library.touch()
    monkeypatch.setattr(_library, "CUDA_LIBRARY", library)
    monkeypatch.setattr(_library, "cuda_library_loaded", False)
    monkeypatch.setattr(_library, "cuda_library_error", None)
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(_library, "_driver_version", lambda: 12060)
    monkeypatch.setattr(_C, "build_info", lambda: {"cuda_version": "13.0.88"})
    with pytest.warns(RuntimeWarning, match=r"reference path: .* needs a driver for CUDA 13 .* is for CUDA 12\.6"):
        _library.load()
    assert not _library.cuda_library_loaded
    assert "Update the driver" in _library.cuda_library_error


def test_without_cuda_in_torch_the_cuda_library_is_not_touched(monkeypatch, tmp_path):
    broken = tmp_path / "libvisionzip_cuda.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(_library, "CUDA_LIBRARY", broken)
    monkeypatch.setattr(_library, "cuda_library_loaded", False)
    monkeypatch.setattr(torch.version, "cuda", None)
    _library.load()
    assert not _library.cuda_library_loaded


def test_info_imports_no_model_code():
    code = (
        "import sys; from visionzip_ext.__main__ import main; "
        "main(['info', '--json']); print('transformers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "False", result.stderr
