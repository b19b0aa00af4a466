// merge and its adjoint on CUDA tensors that have been checked: problem -> params -> launch.
#pragma once

#include "checks/checks.h"
#include "common/layout.h"
#include "cuda/kernels/merge.h"
#include "cuda/torch/device.h"
#include "cuda/torch/errors.h"

namespace visionzip::cuda {

using torch::stable::Tensor;

// Of a batch of images (B, S) of one size.  x: what launches read, whose dimensions after those of images and tokens
// are channels.
inline MergeProblem merge_problem(const Tensor& x, const Tensor& assignment, int64_t k, int64_t m, MergeMode mode) {
  const int64_t B = assignment.size(0);
  return {.dtype = dtype_of(x),
          .mode = mode,
          .B = B,
          .S = assignment.size(1),
          .k = k,
          .m = m,
          .C = channels_of(x, 2),
          .all_rows = B * (k + m)};
}

// `dimension` is that of tokens or rows, in x and in the result, which has `rows` there.  sequences: null, or where the
// packed images lie.  launch: launch_merge or launch_merge_backward; op is named in errors.
inline Tensor run_merge(const char* op, const Tensor& x, const Tensor& assignment, const MergeProblem& problem,
                        const Sequence* sequences, int64_t dimension, int64_t rows,
                        cudaError_t (*launch)(const MergeParams&, cudaStream_t)) {
  const int32_t device = device_of(x);
  const DeviceGuard guard(device);
  const Tensor flat = flat_channels(x, dimension + 1), contiguous_assignment = torch::stable::contiguous(assignment);
  Tensor out = torch::stable::new_empty(x, with_size(x, dimension, rows));
  if (out.numel() == 0) return out;
  const MergeTensors tensors{.in = flat.const_data_ptr(),
                             .out = out.mutable_data_ptr(),
                             .assignment = contiguous_assignment.const_data_ptr<int64_t>(),
                             .image_stride = flat.stride(0),
                             .row_stride = flat.stride(dimension),
                             .sequences = sequences};
  check_launch(op, launch({problem, tensors}, current_stream(device)), device);
  return out;
}

}  // namespace visionzip::cuda
