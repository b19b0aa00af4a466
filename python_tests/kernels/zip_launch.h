// How the kernel driver's cases launch the fused kernel.
#pragma once

#include "cuda/kernels/zip.h"
#include "driver.h"

namespace visionzip::kernel_tests {

inline cuda::Gpu emulated_device() {
  cuda::Gpu gpu{};
  cuda::describe_gpu(gpu);
  cuda::assume_clusters(gpu);
  return gpu;
}

// Whether the emulated device runs such teams: not every one has clusters, or clusters of 16.
inline bool device_has(cuda::Path path, int team) {
  return path != cuda::Path::kCluster || emulated_device().clusters[static_cast<size_t>(team)] > 0;
}

// By this path and team, in scratch memory that holds no zeros.  case_text: for errors.
inline void launch_by(cuda::ZipParams& p, DType dtype, const cuda::Gpu& gpu, cuda::Path path, int team,
                      const std::string& case_text) {
  const cuda::ZipPlan plan = cuda::plan_zip(p, static_cast<int32_t>(size_of(dtype)), gpu, path, team);
  if (plan.path == cuda::Path::kNone) throw std::runtime_error(case_text + "\ndoes not fit: " + plan.why);
  std::vector<char> scratch(static_cast<size_t>(plan.scratch_bytes) + 16, '\x7f');
  p.scratch = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(scratch.data()) + 15) & ~uintptr_t{15});
  const cudaError_t error = cuda::launch_zip(p, dtype, plan, nullptr);
  if (error == cudaSuccess) return;
  throw std::runtime_error(case_text + ", " + cuda::name_of(path) + " of " + std::to_string(team) + "\n" +
                           cudaGetErrorString(error));
}

}  // namespace visionzip::kernel_tests
