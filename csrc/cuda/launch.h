// The one way in which kernels are launched.
#pragma once

#include <cuda_runtime.h>

namespace visionzip::cuda {

template <class Params>
cudaError_t launch(void (*kernel)(Params), unsigned blocks, unsigned threads, cudaStream_t stream,
                   const Params& params) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, params);
}

}  // namespace visionzip::cuda
