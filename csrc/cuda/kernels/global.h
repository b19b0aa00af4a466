// The launches of the path for images of any size.  No torch header.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/plan/global_params.h"

namespace visionzip::cuda {

// Indices and assignment.  params: made of the plan.
cudaError_t launch_global(const GlobalParams& params, cudaStream_t stream);

}  // namespace visionzip::cuda
