// CPU tensors, as the operators make them and point into them.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "common/checks.h"
#include "common/layout.h"

namespace visionzip::cpu {

inline Tensor new_tensor(const std::vector<int64_t>& sizes, torch::headeronly::ScalarType dtype) {
  return torch::stable::empty(sizes, dtype);
}

// Queries or keys as they are multiplied with `other`: in one dtype, both as float32 where theirs differ.
inline Tensor in_common_dtype(const Tensor& x, const Tensor& other) {
  const bool same = x.scalar_type() == other.scalar_type();
  return unit_stride(same ? x : torch::stable::to(x, torch::headeronly::ScalarType::Float));
}

// `offset` elements behind the first.
inline const void* element_of(const Tensor& x, int64_t offset) {
  const auto bytes = static_cast<int64_t>(size_of(dtype_of(x)));
  return static_cast<const char*>(x.const_data_ptr()) + offset * bytes;
}

}  // namespace visionzip::cpu
