#include "cuda/torch/fused_call.h"

#include <torch/csrc/stable/ops.h>

#include <array>
#include <map>
#include <mutex>

#include "checks/checks.h"
#include "cuda/kernels/column_sums.h"
#include "cuda/kernels/zip.h"
#include "cuda/torch/device.h"
#include "cuda/torch/errors.h"

namespace visionzip::cuda {

namespace {

using torch::headeronly::ScalarType;

int32_t element_bytes(const FusedCall& call) { return static_cast<int32_t>(size_of(dtype_of(call.keys))); }

void launch_column_sums(FusedCall& call, const ColumnSumsPlan& plan, int32_t device) {
  ColumnSumsParams& c = call.sums;
  call.attn = torch::stable::new_empty(call.keys, {plan.sums_bytes / int64_t{sizeof(float)}}, ScalarType::Float);
  c.sums = call.attn->mutable_data_ptr<float>();
  call.params.attn = c.sums;
  check_launch(call.op, launch_column_sums(c, dtype_of(call.keys), plan, current_stream(device)), device);
}

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

}  // namespace

bool is_wide(const Tensor& x) {
  const auto size = static_cast<int64_t>(size_of(dtype_of(x)));
  bool wide = reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0 && x.size(x.dim() - 1) * size % 16 == 0;
  for (int64_t d = 0; d + 1 < x.dim(); d++) wide = wide && (x.size(d) == 1 || x.stride(d) * size % 16 == 0);
  return wide;
}

void describe_column_sums(FusedCall& call, int64_t query_token) {
  ZipParams& p = call.params;
  ColumnSumsParams& c = call.sums;
  c.queries = p.queries;
  c.keys = p.keys;
  c.lse = p.lse;
  c.query_image = p.query_image;
  c.query_head = p.query_head;
  c.query_token = query_token;
  c.key_image = p.key_image;
  c.key_head = p.key_head;
  c.key_token = p.key_token;
  c.lse_image = p.lse_image;
  c.lse_head = p.lse_head;
  c.sequences = p.sequences;
  c.order = p.order;
  c.group = p.group;
  c.images = p.images;
  c.all_cells = p.all_tokens * p.group;
  c.H = p.H;
  c.D = p.D;
  c.scale = p.scale;
  c.wide = p.wide_keys && is_wide(*call.queries);
  p.queries = nullptr;
  p.lse = nullptr;
  p.attn_dtype = DType::kFloat32;
  p.attn_heads = p.H;
  p.attn_rows = kSumChunks;
  p.attn_row = p.S;
  p.attn_head = p.attn_row * p.attn_rows;
  p.attn_image = p.sequences ? int64_t{p.attn_heads} * p.attn_rows * p.group : p.attn_head * p.attn_heads;
}

std::optional<FusedPlan> plan_fused(FusedCall& call, const Gpu& gpu) {
  FusedPlan plan{};
  ZipParams& p = call.params;
  plan.zip = plan_zip(p, element_bytes(call), gpu, forced_path(), forced_team());
  if (plan.zip.path == Path::kNone) return std::nullopt;
  if (!call.all_queries_score()) return plan;
  const int64_t cells = int64_t{p.S} * p.group;
  if (cells > INT32_MAX) return std::nullopt;
  call.sums.S = static_cast<int32_t>(cells);
  plan.sums = plan_column_sums(call.sums, element_bytes(call), gpu);
  return plan.sums.possible ? std::optional(plan) : std::nullopt;
}

void launch_fused(FusedCall& call, const FusedPlan& plan, int32_t device) {
  if (call.all_queries_score()) launch_column_sums(call, plan.sums, device);
  ZipParams& p = call.params;
  std::optional<Tensor> scratch;
  if (plan.zip.scratch_bytes > 0) {
    scratch = torch::stable::new_empty(call.keys, {plan.zip.scratch_bytes}, ScalarType::Byte);
    p.scratch = scratch->mutable_data_ptr();
  }
  check_launch(call.op, launch_zip(p, dtype_of(call.keys), plan.zip, current_stream(device)), device);
}

Gpu current_gpu(const char* op, int32_t device) {
  Gpu gpu{};
  check_launch(op, describe_gpu(gpu), device);
  gpu.clusters = clusters_of(gpu, device);
  return gpu;
}

}  // namespace visionzip::cuda
