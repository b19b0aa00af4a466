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

// What the dimensions of x after the first `leading` hold together.
inline int64_t channels_of(const torch::stable::Tensor& x, int64_t leading) {
  int64_t channels = 1;
  for (int64_t d = leading; d < x.dim(); d++) channels *= x.size(d);
  return channels;
}

// x with its first `leading` dimensions, and all others as one of unit stride; in place where the layout allows it.
inline torch::stable::Tensor flat_channels(const torch::stable::Tensor& x, int64_t leading) {
  if (x.dim() == leading + 1) return unit_stride(x);
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d < leading; d++) sizes.push_back(x.size(d));
  sizes.push_back(channels_of(x, leading));
  return unit_stride(torch::stable::reshape(x, sizes));
}

// The sizes of x, but for one dimension's.
inline std::vector<int64_t> with_size(const torch::stable::Tensor& x, int64_t dimension, int64_t size) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d < x.dim(); d++) sizes.push_back(d == dimension ? size : x.size(d));
  return sizes;
}

// Queries or keys as they are multiplied with `other`: in one dtype, both as float32 where theirs differ.
inline torch::stable::Tensor in_common_dtype(const torch::stable::Tensor& x, const torch::stable::Tensor& other) {
  const bool same = x.scalar_type() == other.scalar_type();
  return unit_stride(same ? x : torch::stable::to(x, torch::headeronly::ScalarType::Float));
}

}  // namespace visionzip
