// CUDA's errors in words.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace visionzip::cuda {

// Throws std::runtime_error, naming the operator, the GPU and what failed, unless `error` is none.
void check_launch(const char* op, cudaError_t error, int32_t device);

}  // namespace visionzip::cuda
