// What the merge kernels need, and their launch functions.  No torch header.
#pragma once

#include <cuda_runtime_api.h>

#include "common/types.h"
#include "cuda/plan/sequences.h"

namespace visionzip::cuda {

// Strides in elements.  Rows of `in` are inner-contiguous; `out` is contiguous.
struct MergeParams {
  const void* in;             // merge: (B, S, C).  merge_backward: (B, k + m, C)
  void* out;                  // merge: (B, k + m, C).  merge_backward: (B, S, C)
  const int64_t* assignment;  // (B, S), contiguous
  int64_t image_stride, row_stride;
  int64_t B, S, C, k, m;
  // Null, or where each of the B images lies that are packed along one axis: `in` and `out` then have two dimensions,
  // `assignment` one, and S, k and m are not used.
  const Sequence* sequences;
  int64_t all_rows;  // k + m of all images
  DType dtype;
  MergeMode mode;
};

cudaError_t launch_merge(const MergeParams& params, cudaStream_t stream);
cudaError_t launch_merge_backward(const MergeParams& params, cudaStream_t stream);

}  // namespace visionzip::cuda
