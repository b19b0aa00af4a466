// How the tests launch their kernels.
#pragma once

#include <cuda_runtime.h>

namespace cuda_emulation::tests {

struct LaunchShape {
  unsigned blocks, threads;
  unsigned cluster_blocks = 1;
  bool cooperative = false;
  size_t shared_bytes = 0;
};

template <class Params>
cudaError_t launch(void (*kernel)(Params), const LaunchShape& shape, const Params& params) {
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = shape.cluster_blocks;
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeCooperative;
  attributes[1].val.cooperative = shape.cooperative;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(shape.blocks);
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.attrs = attributes;
  config.numAttrs = 2;
  int most_shared = 0;
  cudaDeviceGetAttribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most_shared);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return cudaLaunchKernelEx(&config, kernel, params);
}

}  // namespace cuda_emulation::tests
