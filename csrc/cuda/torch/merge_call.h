// A decision carried out on CUDA tensors that have been checked: parameters -> launch.
#pragma once

#include "checks/checks.h"
#include "common/layout.h"
#include "cuda/kernels/merge.h"
#include "cuda/torch/device.h"
#include "cuda/torch/errors.h"

namespace visionzip::cuda {

using torch::stable::Tensor;

// p says where the images lie and what is done; the rest of it follows from the tensors.  `dimension` is that of tokens
// or rows, in x and in the result, which has `rows` there.  launch: launch_merge or launch_merge_backward; op is named
// in errors.
inline Tensor carry(const char* op, const Tensor& x, const Tensor& assignment, MergeParams p, int64_t dimension,
                    int64_t rows, cudaError_t (*launch)(const MergeParams&, cudaStream_t)) {
  const int32_t device = device_of(x);
  const DeviceGuard guard(device);
  const Tensor flat = flat_channels(x, dimension + 1), contiguous_assignment = torch::stable::contiguous(assignment);
  Tensor out = torch::stable::new_empty(x, with_size(x, dimension, rows));
  if (out.numel() == 0) return out;
  p.in = flat.const_data_ptr();
  p.out = out.mutable_data_ptr();
  p.assignment = contiguous_assignment.const_data_ptr<int64_t>();
  p.image_stride = flat.stride(0);
  p.row_stride = flat.stride(dimension);
  p.C = flat.size(dimension + 1);
  p.dtype = dtype_of(x);
  check_launch(op, launch(p, current_stream(device)), device);
  return out;
}

// A batch of images (B, S) of one size.
inline MergeParams merge_params(const Tensor& assignment, int64_t k, int64_t m, MergeMode mode) {
  MergeParams p{};
  p.B = assignment.size(0);
  p.S = assignment.size(1);
  p.k = k;
  p.m = m;
  p.all_rows = p.B * (k + m);
  p.mode = mode;
  return p;
}

inline Tensor merge_call(const char* op, const Tensor& x, const Tensor& assignment, int64_t k, int64_t m,
                         MergeMode mode) {
  return carry(op, x, assignment, merge_params(assignment, k, m, mode), 1, k + m, launch_merge);
}

}  // namespace visionzip::cuda
