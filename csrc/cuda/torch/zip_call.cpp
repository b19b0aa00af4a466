#include "cuda/torch/zip_call.h"

#include <torch/csrc/stable/ops.h>

#include <array>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "checks/checks.h"
#include "cuda/kernels/column_sums.h"
#include "cuda/kernels/global.h"
#include "cuda/kernels/zip.h"
#include "cuda/plan/forced_launch.h"
#include "cuda/torch/device.h"
#include "cuda/torch/errors.h"

namespace visionzip::cuda {

namespace {

using torch::headeronly::ScalarType;

// Asked for once: it takes longer than a launch.
decltype(Gpu::clusters) clusters_of(Gpu gpu, int32_t device) {
  static std::mutex mutex;
  static std::map<std::array<int32_t, 3>, decltype(Gpu::clusters)> known;
  const std::lock_guard lock(mutex);
  const auto [found, is_new] = known.try_emplace({device, gpu.compute_capability, gpu.multiprocessors});
  if (is_new) {
    count_clusters(gpu);
    found->second = gpu.clusters;
  }
  return found->second;
}

Gpu current_gpu(const char* op, int32_t device) {
  Gpu gpu{};
  check_launch(op, describe_gpu(gpu), device);
  gpu.clusters = clusters_of(gpu, device);
  return gpu;
}

// Memory that the caching allocator takes back in the stream's order: not before the launches are done with it.
Tensor allocate(const ZipCall& call, int64_t bytes) {
  return torch::stable::new_empty(call.keys, {bytes}, ScalarType::Byte);
}

}  // namespace

bool is_wide(const Tensor& x) {
  const auto size = static_cast<int64_t>(size_of(dtype_of(x)));
  bool wide = reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0 && x.size(x.dim() - 1) * size % 16 == 0;
  for (int64_t d = 0; d + 1 < x.dim(); d++) wide = wide && (x.size(d) == 1 || x.stride(d) * size % 16 == 0);
  return wide;
}

bool can_merge_in_kernel(const ZipCall& call, const Tensor& hidden) {
  return dtype_of(hidden) == call.problem.dtype && is_wide(hidden);
}

ZipCall with_hidden(ZipCall call, const Tensor& hidden, const Tensor& tokens, MergeMode mode) {
  call.problem.has_hidden = true;
  call.problem.mode = mode;
  call.problem.C = static_cast<int32_t>(hidden.size(hidden.dim() - 1));
  call.tensors.hidden = hidden.const_data_ptr();
  call.tensors.hidden_image = hidden.stride(0);
  call.tensors.hidden_token = hidden.stride(hidden.dim() - 2);
  call.tensors.tokens = tokens.mutable_data_ptr();
  return call;
}

ZipPlan plan_call(const ZipCall& call, int32_t device) {
  ZipPlan plan = plan_zip(call.problem, current_gpu(call.op, device), forced_by_environment());
  if (plan.path == Path::kNone) throw std::runtime_error("visionzip::" + std::string(call.op) + ": " + plan.why);
  return plan;
}

void launch_call(const ZipCall& call, const ZipPlan& plan, int32_t device) {
  const cudaStream_t stream = current_stream(device);
  ZipWorkspace workspace{};
  std::optional<Tensor> column_sums, scratch;
  if (plan.column_sums) {
    column_sums = allocate(call, plan.column_sums->sums_bytes);
    workspace.column_sums = static_cast<float*>(column_sums->mutable_data_ptr());
    const ColumnSumsParams params = make_column_sums_params(call.problem, plan, call.tensors, workspace);
    check_launch(call.op, launch_column_sums(params, *plan.column_sums, stream), device);
  }
  if (plan.scratch_bytes > 0) {
    scratch = allocate(call, plan.scratch_bytes);
    workspace.scratch = scratch->mutable_data_ptr();
  }
  if (plan.path == Path::kGlobal) {
    const GlobalParams params = make_global_params(call.problem, plan, call.tensors, workspace);
    check_launch(call.op, launch_global(params, stream), device);
    return;
  }
  const ZipParams params = make_zip_params(call.problem, plan, call.tensors, workspace);
  check_launch(call.op, launch_zip(params, plan, stream), device);
}

}  // namespace visionzip::cuda
