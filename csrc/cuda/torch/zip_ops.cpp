// zip, zip_qk, select and select_qk on CUDA tensors: checks -> problem -> plan -> params -> launch.
//
// The fused kernel does it all in one launch.  A launch more where all queries score (zip_qk without CLS: their column
// sums first), and where hidden has another dtype than the keys (decision, then merge).  Several where images do not
// fit into shared memory.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>

#include "checks/checks.h"
#include "common/layout.h"
#include "common/library.h"
#include "cuda/torch/device.h"
#include "cuda/torch/merge_call.h"
#include "cuda/torch/zip_call.h"

namespace visionzip::cuda {

namespace {

using torch::headeronly::ScalarType;
using Decision = std::tuple<Tensor, Tensor>;
using ZipResult = std::tuple<Tensor, Tensor, Tensor>;

// The keys' part, and where the decision goes.
ZipCall describe_keys(const char* op, const Tensor& keys, int64_t k, int64_t m, const SelectionRule& rule) {
  const int64_t B = keys.size(0), S = keys.size(keys.dim() - 2);
  const bool has_heads = keys.dim() == 4;
  ZipProblem problem{};
  problem.dtype = dtype_of(keys);
  problem.has_cls = rule.has_cls;
  problem.policy = rule.policy;
  problem.keep_cls = rule.keep_cls;
  problem.images = B;
  problem.all_tokens = B * S;
  problem.S = static_cast<int32_t>(S);
  problem.k = static_cast<int32_t>(k);
  problem.m = static_cast<int32_t>(m);
  problem.H = static_cast<int32_t>(has_heads ? keys.size(1) : 1);
  problem.D = static_cast<int32_t>(keys.size(keys.dim() - 1));
  problem.group = 1;
  const Tensor indices = torch::stable::new_empty(keys, {B, k}, ScalarType::Long);
  const Tensor assignment = torch::stable::new_empty(keys, {B, S}, ScalarType::Long);
  ZipTensors tensors{};
  tensors.keys = keys.const_data_ptr();
  tensors.key_image = keys.stride(0);
  tensors.key_head = has_heads ? keys.stride(1) : 0;
  tensors.key_token = keys.stride(keys.dim() - 2);
  tensors.wide_keys = is_wide(keys);
  tensors.indices = indices.mutable_data_ptr<int64_t>();
  tensors.assignment = assignment.mutable_data_ptr<int64_t>();
  return {op, problem, tensors, keys, {}, {}, {}, indices, assignment};
}

ZipCall describe(const char* op, const Tensor& keys, const Tensor& attn, int64_t k, int64_t m,
                 const SelectionRule& rule) {
  ZipCall call = describe_keys(op, unit_stride(keys), k, m, rule);
  const Tensor& a = call.attn.emplace(unit_stride(attn));
  constexpr ScoreSource kByDimensions[] = {ScoreSource::kScores, ScoreSource::kRows, ScoreSource::kMatrix};
  call.problem.source = kByDimensions[a.dim() - 2];
  call.problem.attn_heads = static_cast<int32_t>(a.dim() > 2 ? a.size(1) : 1);
  call.tensors.attn = a.const_data_ptr();
  call.tensors.attn_dtype = dtype_of(a);
  call.tensors.attn_image = a.stride(0);
  call.tensors.attn_head = a.dim() > 2 ? a.stride(1) : 0;
  call.tensors.attn_row = a.dim() == 4 ? a.stride(2) : 0;
  return call;
}

ZipCall describe_qk(const char* op, const Tensor& queries, const Tensor& keys, int64_t k, int64_t m, double scale,
                    const SelectionRule& rule, const std::optional<Tensor>& lse) {
  ZipCall call = describe_keys(op, in_common_dtype(keys, queries), k, m, rule);
  const Tensor& q = call.queries.emplace(in_common_dtype(queries, keys));
  call.problem.source = ScoreSource::kQueryKey;
  call.problem.attn_heads = call.problem.H;
  call.problem.scale = static_cast<float>(scale);
  call.tensors.queries = q.const_data_ptr();
  call.tensors.query_image = q.stride(0);
  call.tensors.query_head = q.stride(1);
  call.tensors.query_token = q.stride(2);
  call.tensors.wide_queries = is_wide(q);
  if (lse) {
    const Tensor& l = call.lse.emplace(unit_stride(*lse));
    call.problem.has_lse = true;
    call.tensors.lse = l.const_data_ptr<float>();
    call.tensors.lse_image = l.stride(0);
    call.tensors.lse_head = l.stride(1);
  }
  return call;
}

Decision run_select(const ZipCall& call) {
  const int32_t device = device_of(call.keys);
  const DeviceGuard guard(device);
  if (call.problem.images > 0) launch_call(call, plan_call(call, device), device);
  return {call.indices, call.assignment};
}

// One launch where hidden has the keys' dtype and the fused kernel has room for the images; otherwise the decision
// first and then the merge.
ZipResult run_zip(const ZipCall& call, const Tensor& hidden, MergeMode mode) {
  const int32_t device = device_of(call.keys);
  const DeviceGuard guard(device);
  const Tensor flat = unit_stride(hidden);
  const int64_t k = call.problem.k, m = call.problem.m;
  if (call.problem.images > 0 && can_merge_in_kernel(call, flat)) {
    const Tensor tokens = torch::stable::new_empty(hidden, with_size(hidden, 1, k + m));
    const ZipCall whole = with_hidden(call, flat, tokens, mode);
    if (const ZipPlan plan = plan_call(whole, device); plan.path != Path::kGlobal) {
      launch_call(whole, plan, device);
      return {tokens, call.indices, call.assignment};
    }
  }
  const auto [indices, assignment] = run_select(call);
  const MergeProblem merging = merge_problem(flat, assignment, k, m, mode);
  return {run_merge(call.op, flat, assignment, merging, nullptr, 1, k + m, launch_merge), indices, assignment};
}

ZipResult zip(const Tensor& hidden, const Tensor& keys, const Tensor& attn, int64_t k, int64_t m, bool has_cls,
              const std::string& merge, const std::string& policy, bool keep_cls) {
  const MergeMode mode = parse_merge("zip", merge);
  const SelectionRule rule = parse_rule("zip", has_cls, policy, keep_cls);
  check_zip(hidden, keys, attn, k, m, rule);
  return run_zip(describe("zip", keys, attn, k, m, rule), hidden, mode);
}

ZipResult zip_qk(const Tensor& hidden, const Tensor& queries, const Tensor& keys, int64_t k, int64_t m,
                 std::optional<double> scale, bool has_cls, const std::string& merge, const std::optional<Tensor>& lse,
                 const std::string& policy, bool keep_cls) {
  const MergeMode mode = parse_merge("zip_qk", merge);
  const SelectionRule rule = parse_rule("zip_qk", has_cls, policy, keep_cls);
  check_zip_qk(hidden, queries, keys, k, m, rule, lse);
  return run_zip(describe_qk("zip_qk", queries, keys, k, m, scale_or_default(scale, queries.size(3)), rule, lse),
                 hidden, mode);
}

Decision select(const Tensor& keys, const Tensor& attn, int64_t k, int64_t m, bool has_cls, const std::string& policy,
                bool keep_cls) {
  const SelectionRule rule = parse_rule("select", has_cls, policy, keep_cls);
  check_select(keys, attn, k, m, rule);
  return run_select(describe("select", keys, attn, k, m, rule));
}

Decision select_qk(const Tensor& queries, const Tensor& keys, int64_t k, int64_t m, std::optional<double> scale,
                   bool has_cls, const std::optional<Tensor>& lse, const std::string& policy, bool keep_cls) {
  const SelectionRule rule = parse_rule("select_qk", has_cls, policy, keep_cls);
  check_select_qk(queries, keys, k, m, rule, lse);
  return run_select(describe_qk("select_qk", queries, keys, k, m, scale_or_default(scale, queries.size(3)), rule, lse));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(VISIONZIP_LIBRARY, VISIONZIP_CUDA_KEY, m) {
  m.impl("zip", TORCH_BOX(&zip));
  m.impl("zip_qk", TORCH_BOX(&zip_qk));
  m.impl("select", TORCH_BOX(&select));
  m.impl("select_qk", TORCH_BOX(&select_qk));
  m.impl("_clusters", TORCH_BOX(&clusters));
}

}  // namespace visionzip::cuda
