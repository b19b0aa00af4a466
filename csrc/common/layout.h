// Layouts that kernels read in place.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace visionzip {

// In place where the last dimension has unit stride; a copy otherwise.
inline torch::stable::Tensor unit_stride(const torch::stable::Tensor& x) {
  const int64_t last = x.dim() - 1;
  return x.size(last) <= 1 || x.stride(last) == 1 ? x : torch::stable::contiguous(x);
}

// (B, S, *) as (B, S, C) with a unit stride in C, in place where the layout allows it.
inline torch::stable::Tensor flat_channels(const torch::stable::Tensor& x) {
  if (x.dim() == 3) return unit_stride(x);
  int64_t channels = 1;
  for (int64_t d = 2; d < x.dim(); d++) channels *= x.size(d);
  return unit_stride(torch::stable::reshape(x, {x.size(0), x.size(1), channels}));
}

// The sizes of x with another number of rows.
inline std::vector<int64_t> with_rows(const torch::stable::Tensor& x, int64_t rows) {
  std::vector<int64_t> sizes{x.size(0), rows};
  for (int64_t d = 2; d < x.dim(); d++) sizes.push_back(x.size(d));
  return sizes;
}

// (T, *) as (T, C) with a unit stride in C, in place where the layout allows it.
inline torch::stable::Tensor flat_rows(const torch::stable::Tensor& x) {
  if (x.dim() == 2) return unit_stride(x);
  int64_t channels = 1;
  for (int64_t d = 1; d < x.dim(); d++) channels *= x.size(d);
  return unit_stride(torch::stable::reshape(x, {x.size(0), channels}));
}

// The sizes of x with another number of first elements.
inline std::vector<int64_t> with_first(const torch::stable::Tensor& x, int64_t rows) {
  std::vector<int64_t> sizes{rows};
  for (int64_t d = 1; d < x.dim(); d++) sizes.push_back(x.size(d));
  return sizes;
}

}  // namespace visionzip
