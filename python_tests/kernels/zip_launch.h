// How the kernel driver's cases launch the fused kernel: as the operators do.
#pragma once

#include "cuda/kernels/global.h"
#include "cuda/kernels/merge.h"
#include "cuda/kernels/zip.h"
#include "cuda/plan/forced_launch.h"
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

// The launches over global memory decide; merge makes the rows of hidden.
inline cudaError_t launch_and_merge(const cuda::ZipProblem& problem, const cuda::ZipPlan& plan,
                                    const cuda::ZipTensors& tensors, const cuda::ZipWorkspace& workspace,
                                    int64_t all_rows) {
  const cudaError_t error = cuda::launch_global(cuda::make_global_params(problem, plan, tensors, workspace), nullptr);
  if (error != cudaSuccess) return error;
  const cuda::MergeProblem merging{.dtype = problem.dtype,
                                   .mode = problem.mode,
                                   .B = problem.images,
                                   .S = problem.S,
                                   .k = problem.k,
                                   .m = problem.m,
                                   .C = problem.C,
                                   .all_rows = all_rows};
  const cuda::MergeTensors rows{tensors.hidden,       tensors.tokens,       tensors.assignment,
                                tensors.hidden_image, tensors.hidden_token, tensors.sequences};
  return cuda::launch_merge({merging, rows}, nullptr);
}

// By this path and team, in scratch memory that holds no zeros.  all_rows: of the output.  case_text: for errors.
inline void launch_by(const cuda::ZipProblem& problem, const cuda::ZipTensors& tensors, const cuda::Gpu& gpu,
                      const cuda::ForcedLaunch& by, int64_t all_rows, const std::string& case_text) {
  const cuda::ZipPlan plan = cuda::plan_zip(problem, gpu, by);
  if (plan.path == cuda::Path::kNone) throw std::runtime_error(case_text + "\ndoes not fit: " + plan.why);
  std::vector<char> scratch(static_cast<size_t>(plan.scratch_bytes) + 16, '\x7f');
  cuda::ZipWorkspace workspace{};
  workspace.scratch = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(scratch.data()) + 15) & ~uintptr_t{15});
  const cudaError_t error =
      plan.path == cuda::Path::kGlobal
          ? launch_and_merge(problem, plan, tensors, workspace, all_rows)
          : cuda::launch_zip(cuda::make_zip_params(problem, plan, tensors, workspace), plan, nullptr);
  if (error == cudaSuccess) return;
  throw std::runtime_error(case_text + ", " + cuda::to_text(by) + "\n" + cudaGetErrorString(error));
}

}  // namespace visionzip::kernel_tests
