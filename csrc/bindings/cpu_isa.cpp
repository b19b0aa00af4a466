// _C.cpu_isa(): the instruction set that the CPU kernels use here.
#include "bindings/bindings.h"
#include "cpu/kernels/kernels.h"

namespace visionzip {

void bind_cpu_isa(pybind11::module_& module) {
  module.def(
      "cpu_isa", [] { return cpu::kernels().name; },
      "The instruction set that the CPU kernels use here: the best that this CPU has, or the one that the environment "
      "variable VISIONZIP_CPU_ISA names.");
}

}  // namespace visionzip
