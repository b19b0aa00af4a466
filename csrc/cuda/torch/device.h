// The device that an operator's tensors are on, and the stream that its work goes to.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/tensor.h>

#ifndef CUDA_EMULATION
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#endif

namespace visionzip::cuda {

#ifndef CUDA_EMULATION

using torch::stable::accelerator::DeviceGuard;

inline int32_t device_of(const torch::stable::Tensor& x) { return x.get_device_index(); }

inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

#else  // CPU tensors; the one emulated device, whose launches are over when they return

struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
};

inline int32_t device_of(const torch::stable::Tensor&) { return 0; }

inline cudaStream_t current_stream(int32_t) { return nullptr; }

#endif

}  // namespace visionzip::cuda
