#include "cuda/torch/errors.h"

#include <stdexcept>
#include <string>

namespace visionzip::cuda {

namespace {

std::string gpu_name(int32_t device) {
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return "cuda:" + std::to_string(device) + " (compute capability " + std::to_string(major) + "." +
         std::to_string(minor) + ")";
}

}  // namespace

void check_launch(const char* op, cudaError_t error, int32_t device) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next call of somebody else would report it
  const std::string start = "visionzip::" + std::string(op) + ": ";
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction) {
    throw std::runtime_error(start + "no kernel for " + gpu_name(device) +
                             "; this build has the architectures " VISIONZIP_CUDA_ARCHITECTURES
                             "; build with VISIONZIP_CUDA_ARCHS set to include it");
  }
  throw std::runtime_error(start + "launch on " + gpu_name(device) + " failed: " + cudaGetErrorString(error));
}

}  // namespace visionzip::cuda
