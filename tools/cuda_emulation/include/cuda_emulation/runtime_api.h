// What CUDA's cuda_runtime.h adds to the C interface: templates over the kernel's type.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <tuple>

namespace cuda_emulation {

// Executes the kernel, for each thread of the launch.
cudaError_t launch_kernel(const cudaLaunchConfig_t& config, const void* function, std::function<void()> kernel);

}  // namespace cuda_emulation

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  std::tuple<Parameters...> parameters(static_cast<Arguments&&>(arguments)...);
  return cuda_emulation::launch_kernel(*config, reinterpret_cast<const void*>(kernel),
                                       [kernel, parameters] { std::apply(kernel, parameters); });
}

template <class T>
cudaError_t cudaFuncSetAttribute(T* function, cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(function), attribute, value);
}

template <class T>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, T* function, int threads, size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, reinterpret_cast<const void*>(function), threads,
                                                       shared);
}

template <class T>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, T* function, const cudaLaunchConfig_t* config) {
  return cudaOccupancyMaxActiveClusters(clusters, reinterpret_cast<const void*>(function), config);
}
