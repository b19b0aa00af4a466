#!/bin/sh
# ensure_nvcc.sh PYTHON: installs nvcc as a Python package into that Python's environment, unless this machine has one
# where the build looks for it (cmake/CudaCompiler.cmake).
set -eu

if [ "${VISIONZIP_WITH_CUDA:-AUTO}" = OFF ]; then
  exit 0
fi
if [ -n "${CUDACXX:-}" ] || [ -x "${CUDA_HOME:-}/bin/nvcc" ] || [ -x "${CUDA_PATH:-}/bin/nvcc" ] ||
  command -v nvcc >/dev/null; then
  exit 0
fi
# Elsewhere the package would not run; the build then leaves the CUDA library out, and says so.
if [ "$(uname -sm)" != "Linux x86_64" ]; then
  exit 0
fi
echo "No nvcc on PATH or in CUDA_HOME: installing it from PyPI"
exec "$1" -m pip install --quiet -r requirements/cuda.txt
