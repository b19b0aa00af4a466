# Development: each target sets up what it needs (.venv, the pinned requirements, the libraries) and redoes nothing that
# is up to date. `make` lists the targets.
#
# PYTHON chooses the Python that .venv is made with; VISIONZIP_WITH_CUDA and VISIONZIP_CUDA_ARCHS are explained in setup.py.

PYTHON ?= python3
export VISIONZIP_WITH_CUDA ?= AUTO
export VISIONZIP_CUDA_ARCHS ?=
export VISIONZIP_WERROR ?= ON

BIN := .venv/bin
STAMPS := .venv/stamps

native_sources := CMakeLists.txt $(shell find csrc cmake tools/cuda_emulation python_tests/kernels -type f -not -name "*.py*")
build_definition := pyproject.toml setup.py

.PHONY: help demo test test-compat test-lmms kernels model bench quality lint format mutants wheel test-abi setup clean FORCE
.DELETE_ON_ERROR:

help:  ## the targets, a line each
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

# Status 2 of the first says that its encoder or pictures cannot be fetched, and which: the second needs no network.
demo: setup  ## a small trained model's answers; then LLaVA-1.5's times and memory (DEMO_ARGS=...: the latter alone)
	$(if $(DEMO_ARGS),,$(BIN)/python -m evaluation demo || [ $$? = 2 ])
	$(BIN)/python -m visionzip_ext demo $(DEMO_ARGS)

# A process a core; one thread each, except where a test asks for more.
test: setup  ## the whole test suite, with test-compat (PYTEST_ARGS="-k merge": a part, without)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest python_tests --numprocesses auto $(PYTEST_ARGS)
	$(if $(PYTEST_ARGS),,$(MAKE) test-compat)

# The libraries are those of the source tree, which depend on torch and Python alone; so the emulated kernels, which
# nothing of transformers reaches, are left to the other environment.
test-compat: setup $(STAMPS)/compat  ## the tests of models under the oldest supported transformers, in .venv-compat
	OMP_NUM_THREADS=1 .venv-compat/bin/python -m pytest python_tests/models -k "not emulated" --numprocesses auto

test-lmms: setup $(STAMPS)/lmms  ## lmms-eval itself with compressed models, in .venv-lmms
	OMP_NUM_THREADS=1 .venv-lmms/bin/python -m pytest python_tests/harness

kernels: setup  ## registers, spills and machine code of the CUDA kernels, and their growth (KERNELS_ARGS=--accept, ...)
	$(BIN)/python -m tools.kernel_report $(KERNELS_ARGS)

model: setup  ## modelled times of the benchmarks on an H100 and an H200, beside measured ones (MODEL_ARGS=--json, ...)
	$(BIN)/python -m tools.performance_model $(MODEL_ARGS)

bench: setup  ## the benchmarks (BENCH_ARGS=...)
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

quality: setup  ## accuracy of a trained model with few visual tokens (QUALITY_ARGS=...)
	OMP_NUM_THREADS=2 $(BIN)/python -m evaluation measure $(QUALITY_ARGS)

# Only what git tracks: a build's own files are nobody's style.
python_files = $(shell git ls-files '*.py' '*.pyi')
cpp_files = $(shell git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

lint: $(STAMPS)/requirements  ## ruff, clang-format, mypy and the layers of imports
	$(BIN)/ruff check $(python_files)
	$(BIN)/ruff format --check $(python_files)
	$(BIN)/clang-format --dry-run -Werror $(cpp_files)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMPS)/requirements  ## what ruff and clang-format can mend by themselves
	$(BIN)/ruff check --fix $(python_files)
	$(BIN)/ruff format $(python_files)
	$(BIN)/clang-format -i $(cpp_files)

# By hand: each fault is built or run anew.
mutants: setup  ## plant faults, and tell which no test sees (MUTANTS_ARGS="planted" or "generated", and a pattern)
	$(BIN)/pip install --quiet -r requirements/mutants.txt
	$(BIN)/python -m tools.mutants $(MUTANTS_ARGS)

# setuptools collects a wheel's files in build/lib*, and would keep those that the sources no longer have.
wheel: setup  ## a wheel in dist/
	rm -rf build/lib*
	$(BIN)/pip wheel . --no-build-isolation --no-deps --wheel-dir dist

test-abi: setup  ## the package under the oldest supported torch and the newest (CUDA builds: 5 GB each)
	$(BIN)/python tools/test_abi.py

setup: $(STAMPS)/libraries  ## .venv and the libraries, for work without the other targets

clean:  ## remove builds; .venv stays
	rm -rf build dist *.egg-info visionzip_ext/*.so $(STAMPS)/libraries $(STAMPS)/package

# --- set-up, step by step: a stamp says that a step was done after everything that it depends on last changed ----------

$(STAMPS)/environment:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or later is needed: make PYTHON=...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/requirements: $(STAMPS)/environment $(wildcard requirements/*.txt)
	$(BIN)/pip install --quiet -r requirements/dev.txt
	@touch $@

# It sees .venv's packages, torch above all; its own come first.
print_site_packages := -c "import sysconfig; print(sysconfig.get_path('purelib'))"
$(STAMPS)/compat: $(STAMPS)/requirements requirements/compat.txt requirements/test.txt
	@test -x .venv-compat/bin/python || $(BIN)/python -m venv .venv-compat
	@$(BIN)/python $(print_site_packages) > "$$(.venv-compat/bin/python $(print_site_packages))/development.pth"
	.venv-compat/bin/pip install --quiet -r requirements/compat.txt
	@touch $@

# As .venv-compat. lmms-eval requires torchvision, but a PyTorch for CPUs alone cannot load PyPI's, which then has to go:
# transformers would use it.
$(STAMPS)/lmms: $(STAMPS)/requirements requirements/lmms.txt requirements/run.txt requirements/test.txt
	@test -x .venv-lmms/bin/python || $(BIN)/python -m venv .venv-lmms
	@$(BIN)/python $(print_site_packages) > "$$(.venv-lmms/bin/python $(print_site_packages))/development.pth"
	.venv-lmms/bin/pip install --quiet -r requirements/lmms.txt
	@.venv-lmms/bin/python -c "import torchvision" 2>/dev/null || .venv-lmms/bin/pip uninstall --quiet --yes torchvision
	@touch $@

# The build's options, rewritten only where they differ from the last build's.
options := $(VISIONZIP_WITH_CUDA) $(VISIONZIP_CUDA_ARCHS) $(CUDACXX) $(CUDAHOSTCXX)
$(STAMPS)/options: $(STAMPS)/environment FORCE
	@echo '$(options)' | cmp -s - $@ || echo '$(options)' > $@

$(STAMPS)/nvcc: $(STAMPS)/requirements $(STAMPS)/options tools/ensure_nvcc.sh
	@tools/ensure_nvcc.sh $(BIN)/python
	@touch $@

# Makes visionzip_ext importable from the source tree, which also builds it.
$(STAMPS)/package: $(STAMPS)/nvcc $(build_definition)
	$(BIN)/pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

# From then on a change of the sources needs only what depends on them built again.
$(STAMPS)/libraries: $(STAMPS)/package $(native_sources) $(if $(wildcard visionzip_ext/libvisionzip_cpu.so),,FORCE)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@
