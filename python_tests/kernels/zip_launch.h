// How the kernel driver's cases launch the fused kernel: as the operators do.
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
inline bool device_has(const cuda::ForcedLaunch& by) {
  return by.path != cuda::Path::kCluster || emulated_device().clusters[static_cast<size_t>(by.team)] > 0;
}

// By this path and team, in scratch memory that holds no zeros.  case_text: for errors.  threads: of a block; 0: as
// planned.
inline void launch_by(const cuda::ZipProblem& problem, const cuda::ZipTensors& tensors, const cuda::Gpu& gpu,
                      const cuda::ForcedLaunch& by, const std::string& case_text, int32_t threads = 0) {
  cuda::ZipPlan plan = cuda::plan_zip(problem, gpu, by);
  if (threads > 0) plan.threads = threads;
  if (plan.path == cuda::Path::kNone) throw std::runtime_error(case_text + "\ndoes not fit: " + plan.why);
  std::vector<char> scratch(static_cast<size_t>(plan.scratch_bytes) + 16, '\x7f');
  cuda::ZipWorkspace workspace{};
  workspace.scratch = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(scratch.data()) + 15) & ~uintptr_t{15});
  const cudaError_t error = cuda::launch_zip(cuda::make_zip_params(problem, plan, tensors, workspace), plan, nullptr);
  if (error == cudaSuccess) return;
  throw std::runtime_error(case_text + ", " + cuda::name_of(by.path) + " of " + std::to_string(by.team) + "\n" +
                           cudaGetErrorString(error));
}

}  // namespace visionzip::kernel_tests
