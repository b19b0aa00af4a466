// The one way in which kernels are launched.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <tuple>

namespace visionzip::cuda {

struct LaunchShape {
  unsigned blocks, threads;
  size_t shared_bytes = 0;
  unsigned cluster_blocks = 1;  // blocks of a cluster
  bool cooperative = false;     // all blocks must be resident together
};

// A shape as the runtime wants it.
class LaunchConfig {
 public:
  LaunchConfig(const LaunchShape& shape, cudaStream_t stream) {
    config_.gridDim = dim3(shape.blocks);
    config_.blockDim = dim3(shape.threads);
    config_.dynamicSmemBytes = shape.shared_bytes;
    config_.stream = stream;
    config_.attrs = attributes_;
    if (shape.cluster_blocks > 1) {
      cudaLaunchAttribute& attribute = add(cudaLaunchAttributeClusterDimension);
      attribute.val.clusterDim.x = shape.cluster_blocks;
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    }
    if (shape.cooperative) add(cudaLaunchAttributeCooperative).val.cooperative = 1;
  }
  LaunchConfig(const LaunchConfig&) = delete;
  LaunchConfig& operator=(const LaunchConfig&) = delete;

  operator const cudaLaunchConfig_t*() const { return &config_; }

 private:
  cudaLaunchAttribute& add(cudaLaunchAttributeID id) {
    cudaLaunchAttribute& attribute = attributes_[config_.numAttrs++];
    attribute.id = id;
    return attribute;
  }

  cudaLaunchAttribute attributes_[2];
  cudaLaunchConfig_t config_{};
};

// Sets an attribute of a kernel on the current device, where it has not been set to this before: setting one takes as
// long as a launch.
inline cudaError_t set_once(const void* kernel, cudaFuncAttribute attribute, int device, int value) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, cudaFuncAttribute, int>, int> values;
  const std::lock_guard lock(mutex);
  int& known = values[{kernel, attribute, device}];
  if (known == value) return cudaSuccess;
  const cudaError_t error = cudaFuncSetAttribute(kernel, attribute, value);
  if (error == cudaSuccess) known = value;
  return error;
}

// Lets a kernel have what a shape asks for beyond what every kernel may have.
template <class Params>
cudaError_t opt_in(void (*kernel)(Params), const LaunchShape& shape) {
  constexpr size_t kSharedOfAll = 48 << 10;
  constexpr unsigned kClusterOfAll = 8;
  if (shape.shared_bytes <= kSharedOfAll && shape.cluster_blocks <= kClusterOfAll) return cudaSuccess;
  const auto function = reinterpret_cast<const void*>(kernel);
  int device, most;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  if (shape.cluster_blocks > kClusterOfAll) {
    const cudaError_t error = set_once(function, cudaFuncAttributeNonPortableClusterSizeAllowed, device, 1);
    if (error != cudaSuccess) return error;
  }
  if (shape.shared_bytes <= kSharedOfAll) return cudaSuccess;
  // The most that the device has, never just this launch's: another thread, with less, may come in between.
  if (const cudaError_t error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)) {
    return error;
  }
  return set_once(function, cudaFuncAttributeMaxDynamicSharedMemorySize, device, most);
}

template <class Params>
cudaError_t launch(void (*kernel)(Params), const LaunchShape& shape, cudaStream_t stream, const Params& params) {
  if (const cudaError_t error = opt_in(kernel, shape)) return error;
  return cudaLaunchKernelEx(LaunchConfig(shape, stream), kernel, params);
}

// How many clusters of a shape's run at the same time; 0 where none can, or the build has no such kernel for the
// device.
template <class Params>
int count_clusters(void (*kernel)(Params), const LaunchShape& shape) {
  int count = 0;
  if (opt_in(kernel, shape) == cudaSuccess &&
      cudaOccupancyMaxActiveClusters(&count, kernel, LaunchConfig(shape, nullptr)) == cudaSuccess) {
    return count;
  }
  (void)cudaGetLastError();  // an answer, and no launch's error
  return 0;
}

}  // namespace visionzip::cuda
