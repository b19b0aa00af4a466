// merge and its adjoint on CUDA tensors: checks -> problem -> params -> launch.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>

#include "checks/checks.h"
#include "common/library.h"
#include "cuda/torch/merge_call.h"

namespace visionzip::cuda {

namespace {

Tensor merge(const Tensor& x, const Tensor& assignment, int64_t k, int64_t m, const std::string& merge) {
  const MergeMode mode = parse_merge("merge", merge);
  check_merge(x, assignment, k, m);
  const MergeProblem problem = merge_problem(x, assignment, k, m, mode);
  return run_merge("merge", x, assignment, problem, nullptr, 1, k + m, launch_merge);
}

Tensor merge_backward(const Tensor& grad, const Tensor& assignment, int64_t k, int64_t m, const std::string& merge) {
  const MergeMode mode = parse_merge("merge_backward", merge);
  check_merge_backward(grad, assignment, k, m);
  const MergeProblem problem = merge_problem(grad, assignment, k, m, mode);
  return run_merge("merge_backward", grad, assignment, problem, nullptr, 1, problem.S, launch_merge_backward);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(VISIONZIP_LIBRARY, VISIONZIP_CUDA_KEY, m) {
  m.impl("merge", TORCH_BOX(&merge));
  m.impl("merge_backward", TORCH_BOX(&merge_backward));
}

}  // namespace visionzip::cuda
