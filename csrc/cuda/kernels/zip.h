// The fused kernel's launch.  No torch header.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/plan/zip_plan.h"

namespace visionzip::cuda {

// hidden (if any), keys and queries are of one dtype.  params: planned; params.scratch: plan.scratch_bytes of memory,
// which need not be zero: what must be is made so on the stream.
cudaError_t launch_zip(const ZipParams& params, DType dtype, const ZipPlan& plan, cudaStream_t stream);

// Of the current device.
cudaError_t describe_gpu(Gpu& gpu);

// Gpu::clusters, of the current device; all 0 where this build has no kernels of clusters for it.
void count_clusters(Gpu& gpu);

}  // namespace visionzip::cuda
