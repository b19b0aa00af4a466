// The launch that works out where packed sequences lie.  No torch header.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/plan/sequences.h"

namespace visionzip::cuda {

// k, m: a number for each sequence.  Where cu_seqlens does not rise from 0 to `tokens`, a sequence is longer than
// `longest` or too short for its k + m, the kernel ends with a device-side assertion.
cudaError_t launch_place(const Packing& packing, const std::vector<int64_t>& k, const std::vector<int64_t>& m,
                         const PlacedSequences& placed, cudaStream_t stream);

}  // namespace visionzip::cuda
