// The merge kernels' launches.  No torch header.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/plan/merge_params.h"

namespace visionzip::cuda {

cudaError_t launch_merge(const MergeParams& params, cudaStream_t stream);
cudaError_t launch_merge_backward(const MergeParams& params, cudaStream_t stream);

}  // namespace visionzip::cuda
