// The fused kernel's launch.  No torch header.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/plan/zip_params.h"

namespace visionzip::cuda {

// params: made of the plan.  What must be zero in its scratch memory is made so on the stream.
cudaError_t launch_zip(const ZipParams& params, const ZipPlan& plan, cudaStream_t stream);

// Of the current device.
cudaError_t describe_gpu(Gpu& gpu);

// Gpu::clusters, of the current device; all 0 where this build has no kernels of clusters for it.
void count_clusters(Gpu& gpu);

}  // namespace visionzip::cuda
