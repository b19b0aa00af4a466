// The operators on CUDA tensors: checks -> parameters -> launch.  Operators that are not registered here run the
// reference (visionzip_ext/_fallback.py), which merges through this library.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <stdexcept>
#include <string>

#include "common/checks.h"
#include "common/layout.h"
#include "common/library.h"
#include "device.h"
#include "merge.h"

namespace visionzip::cuda {

namespace {

std::string gpu_name(int32_t device) {
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return "cuda:" + std::to_string(device) + " (compute capability " + std::to_string(major) + "." +
         std::to_string(minor) + ")";
}

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

template <class Launch>
Tensor carry(const char* op, const Tensor& x, const Tensor& assignment, int64_t k, int64_t m, int64_t rows,
             MergeMode mode, const Launch& launch) {
  const int32_t device = device_of(x);
  const DeviceGuard guard(device);
  const Tensor flat = flat_channels(x), contiguous_assignment = torch::stable::contiguous(assignment);
  Tensor out = torch::stable::new_empty(x, with_rows(x, rows));
  if (out.numel() == 0) return out;
  MergeParams p{};
  p.in = flat.const_data_ptr();
  p.out = out.mutable_data_ptr();
  p.assignment = contiguous_assignment.const_data_ptr<int64_t>();
  p.image_stride = flat.stride(0);
  p.row_stride = flat.stride(1);
  p.B = assignment.size(0);
  p.S = assignment.size(1);
  p.C = flat.size(2);
  p.k = k;
  p.m = m;
  p.dtype = dtype_of(x);
  p.mode = mode;
  check_launch(op, launch(p, current_stream(device)), device);
  return out;
}

Tensor merge(const Tensor& x, const Tensor& assignment, int64_t k, int64_t m, const std::string& merge) {
  const MergeMode mode = parse_merge("merge", merge);
  check_merge(x, assignment, k, m);
  return carry("merge", x, assignment, k, m, k + m, mode, launch_merge);
}

Tensor merge_backward(const Tensor& grad, const Tensor& assignment, int64_t k, int64_t m, const std::string& merge) {
  const MergeMode mode = parse_merge("merge_backward", merge);
  check_merge_backward(grad, assignment, k, m);
  return carry("merge_backward", grad, assignment, k, m, assignment.size(1), mode, launch_merge_backward);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(VISIONZIP_LIBRARY, VISIONZIP_CUDA_KEY, m) {
  m.impl("merge", TORCH_BOX(&merge));
  m.impl("merge_backward", TORCH_BOX(&merge_backward));
}

}  // namespace visionzip::cuda
