// The parts of the Python module _C, a function each.
#pragma once

#include <pybind11/pybind11.h>

namespace visionzip {

// _C.build_info(): facts of the build.
void bind_build_info(pybind11::module_& module);

// _C.check() and _C.check_sequences(): what the operators require of their arguments.
void bind_checks(pybind11::module_& module);

// _C.cpu_isa(): the instruction set that the CPU kernels use here.
void bind_cpu_isa(pybind11::module_& module);

// _C.plan(): how a problem would be computed.
void bind_plan(pybind11::module_& module);

}  // namespace visionzip
