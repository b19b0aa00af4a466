// What the merge kernels need, and their launch functions.  No torch header.
#pragma once

#include <cuda_runtime_api.h>

#include "visionzip/types.h"

namespace visionzip::cuda {

// Strides in elements.  Rows of `in` are inner-contiguous; `out` is contiguous.
struct MergeParams {
  const void* in;             // merge: (B, S, C).  merge_backward: (B, k + m, C)
  void* out;                  // merge: (B, k + m, C).  merge_backward: (B, S, C)
  const int64_t* assignment;  // (B, S), contiguous
  int64_t image_stride, row_stride;
  int64_t B, S, C, k, m;
  DType dtype;
  MergeMode mode;
};

cudaError_t launch_merge(const MergeParams& params, cudaStream_t stream);
cudaError_t launch_merge_backward(const MergeParams& params, cudaStream_t stream);

}  // namespace visionzip::cuda
