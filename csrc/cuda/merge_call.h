// A decision carried out on CUDA tensors that have been checked: parameters -> launch.
#pragma once

#include "common/checks.h"
#include "common/layout.h"
#include "device.h"
#include "errors.h"
#include "merge.h"

namespace visionzip::cuda {

using torch::stable::Tensor;

// launch: launch_merge or launch_merge_backward; rows: of the result.  op is named in errors.
template <class Launch>
Tensor carry(const char* op, const Tensor& x, const Tensor& assignment, int64_t k, int64_t m, int64_t rows,
             MergeMode mode, const Launch& launch) {
  const int32_t device = device_of(x);
  const DeviceGuard guard(device);
  const Tensor flat = flat_channels(x, 2), contiguous_assignment = torch::stable::contiguous(assignment);
  Tensor out = torch::stable::new_empty(x, with_size(x, 1, rows));
  if (out.numel() == 0) return out;
  MergeParams p{};
  p.in = flat.const_data_ptr();
  p.out = out.mutable_data_ptr();
  p.assignment = contiguous_assignment.const_data_ptr<int64_t>();
  p.image_stride = flat.stride(0);
  p.row_stride = flat.stride(1);
  p.B = assignment.size(0);
  p.S = assignment.size(1);
  p.C = flat.size(2);
  p.k = k;
  p.m = m;
  p.all_rows = p.B * (k + m);
  p.dtype = dtype_of(x);
  p.mode = mode;
  check_launch(op, launch(p, current_stream(device)), device);
  return out;
}

inline Tensor merge_call(const char* op, const Tensor& x, const Tensor& assignment, int64_t k, int64_t m,
                         MergeMode mode) {
  return carry(op, x, assignment, k, m, k + m, mode, launch_merge);
}

}  // namespace visionzip::cuda
