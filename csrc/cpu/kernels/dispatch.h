// From a dtype to the element type that a kernel is compiled for.
#pragma once

#include "common/types.h"
#include "cpu/kernels/simd.h"

namespace visionzip::cpu::VISIONZIP_ISA {

using namespace visionzip::VISIONZIP_ISA;

// kernel.operator()<T>() with the dtype's element type T.
template <class Kernel>
static inline void dispatch(DType dtype, const Kernel& kernel) {
  switch (dtype) {
    case DType::kFloat32:
      return kernel.template operator()<float>();
    case DType::kFloat16:
      return kernel.template operator()<Half>();
    case DType::kBFloat16:
      return kernel.template operator()<BFloat16>();
  }
}

}  // namespace visionzip::cpu::VISIONZIP_ISA
