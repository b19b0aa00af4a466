// CPU tensors, as the operators make them and point into them.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "checks/checks.h"
#include "common/layout.h"

namespace visionzip::cpu {

inline Tensor new_tensor(const std::vector<int64_t>& sizes, torch::headeronly::ScalarType dtype) {
  return torch::stable::empty(sizes, dtype);
}

// `offset` elements behind the first.
inline const void* element_of(const Tensor& x, int64_t offset) {
  const auto bytes = static_cast<int64_t>(size_of(dtype_of(x)));
  return static_cast<const char*>(x.const_data_ptr()) + offset * bytes;
}
inline void* mutable_element_of(const Tensor& x, int64_t offset) {
  const auto bytes = static_cast<int64_t>(size_of(dtype_of(x)));
  return static_cast<char*>(x.mutable_data_ptr()) + offset * bytes;
}

}  // namespace visionzip::cpu
