// zip, zip_qk, select and select_qk on CUDA tensors: checks -> parameters -> plan -> launch.
//
// The fused kernel does it all in one launch.  A launch more where all queries score (zip_qk without CLS: their column
// sums first), and where hidden has another dtype than the keys (decision, then merge).  The decision comes from the
// reference where there is no plan: images, or heads, that do not fit into shared memory.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "checks/checks.h"
#include "common/layout.h"
#include "common/library.h"
#include "cuda/torch/device.h"
#include "cuda/torch/fused_call.h"
#include "cuda/torch/merge_call.h"

namespace visionzip::cuda {

namespace {

using torch::headeronly::ScalarType;
using Decision = std::tuple<Tensor, Tensor>;
using ZipResult = std::tuple<Tensor, Tensor, Tensor>;

void describe_keys(FusedCall& call, const Tensor& keys, int64_t k, int64_t m) {
  const bool has_heads = keys.dim() == 4;
  ZipParams& p = call.params;
  p.keys = call.keys.const_data_ptr();
  p.key_image = call.keys.stride(0);
  p.key_head = has_heads ? call.keys.stride(1) : 0;
  p.key_token = call.keys.stride(keys.dim() - 2);
  p.images = keys.size(0);
  p.S = static_cast<int32_t>(keys.size(keys.dim() - 2));
  p.all_tokens = p.images * p.S;
  p.group = 1;
  p.H = static_cast<int32_t>(has_heads ? keys.size(1) : 1);
  p.D = static_cast<int32_t>(keys.size(keys.dim() - 1));
  p.k = static_cast<int32_t>(k);
  p.m = static_cast<int32_t>(m);
  p.has_cls = call.has_cls;
  p.wide_keys = is_wide(call.keys);
}

FusedCall describe(const char* op, const Tensor& keys, const Tensor& attn, int64_t k, int64_t m, bool has_cls) {
  FusedCall call{op, unit_stride(keys), unit_stride(attn)};
  call.has_cls = has_cls;
  describe_keys(call, keys, k, m);
  const Tensor& a = *call.attn;
  ZipParams& p = call.params;
  p.attn = a.const_data_ptr();
  p.attn_dtype = dtype_of(a);
  p.attn_image = a.stride(0);
  p.attn_head = a.dim() > 2 ? a.stride(1) : 0;
  p.attn_row = a.dim() == 4 ? a.stride(2) : 0;
  p.attn_heads = static_cast<int32_t>(a.dim() > 2 ? a.size(1) : 1);
  p.attn_rows = static_cast<int32_t>(a.dim() == 4 && !has_cls ? a.size(2) : 1);
  return call;
}

FusedCall describe_qk(const char* op, const Tensor& queries, const Tensor& keys, int64_t k, int64_t m, double scale,
                      bool has_cls, const std::optional<Tensor>& lse) {
  FusedCall call{op, in_common_dtype(keys, queries), {}, in_common_dtype(queries, keys)};
  call.has_cls = has_cls;
  call.scale = scale;
  describe_keys(call, keys, k, m);
  ZipParams& p = call.params;
  p.queries = call.queries->const_data_ptr();
  p.query_image = call.queries->stride(0);
  p.query_head = call.queries->stride(1);
  p.scale = static_cast<float>(scale);
  if (lse) {
    call.lse = unit_stride(*lse);
    p.lse = call.lse->const_data_ptr<float>();
    p.lse_image = call.lse->stride(0);
    p.lse_head = call.lse->stride(1);
  }
  if (!has_cls) describe_column_sums(call, call.queries->stride(2));
  return call;
}

Decision decide_by_reference(const FusedCall& call) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  const int64_t k = call.params.k, m = call.params.m;
  std::vector<StableIValue> stack;
  if (call.queries) {
    stack = {from(*call.queries), from(call.keys),    from(k),       from(m),
             from(call.scale),    from(call.has_cls), from(call.lse)};
  } else {
    stack = {from(call.keys), from(*call.attn), from(k), from(m), from(call.has_cls)};
  }
  const char* op = call.queries ? "visionzip::_select_qk_reference" : "visionzip::_select_reference";
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

Decision new_decision(const FusedCall& call) {
  const ZipParams& p = call.params;
  return {torch::stable::new_empty(call.keys, {p.images, p.k}, ScalarType::Long),
          torch::stable::new_empty(call.keys, {p.images, p.S}, ScalarType::Long)};
}

// False where no plan fits.
bool launch(FusedCall& call, const Decision& decision, int32_t device) {
  const auto plan = plan_fused(call, current_gpu(call.op, device));
  if (!plan) return false;
  call.params.indices = std::get<0>(decision).mutable_data_ptr<int64_t>();
  call.params.assignment = std::get<1>(decision).mutable_data_ptr<int64_t>();
  launch_fused(call, *plan, device);
  return true;
}

Decision run_select(FusedCall&& call) {
  const int32_t device = device_of(call.keys);
  const DeviceGuard guard(device);
  const Decision decision = new_decision(call);
  return call.params.images == 0 || launch(call, decision, device) ? decision : decide_by_reference(call);
}

// One launch where hidden has the keys' dtype; otherwise, and where no plan fits, the decision first and then the
// merge.
ZipResult run_zip(FusedCall&& call, const Tensor& hidden, MergeMode mode) {
  ZipParams& p = call.params;
  const int32_t device = device_of(call.keys);
  const DeviceGuard guard(device);
  const Tensor flat = unit_stride(hidden);
  if (dtype_of(hidden) == dtype_of(call.keys) && is_wide(flat) && p.images > 0) {
    p.C = static_cast<int32_t>(hidden.size(2));
    p.mode = mode;
    p.hidden = flat.const_data_ptr();
    p.hidden_image = flat.stride(0);
    p.hidden_token = flat.stride(1);
    const Tensor tokens = torch::stable::new_empty(hidden, {p.images, p.k + p.m, p.C});
    p.tokens = tokens.mutable_data_ptr();
    const Decision decision = new_decision(call);
    if (launch(call, decision, device)) return std::tuple_cat(std::tuple(tokens), decision);
    p.hidden = nullptr;
  }
  const int64_t k = p.k, m = p.m;
  const char* op = call.op;
  const auto [indices, assignment] = run_select(std::move(call));
  return {merge_call(op, flat, assignment, k, m, mode), indices, assignment};
}

ZipResult zip(const Tensor& hidden, const Tensor& keys, const Tensor& attn, int64_t k, int64_t m, bool has_cls,
              const std::string& merge) {
  const MergeMode mode = parse_merge("zip", merge);
  check_zip(hidden, keys, attn, k, m, has_cls);
  return run_zip(describe("zip", keys, attn, k, m, has_cls), hidden, mode);
}

ZipResult zip_qk(const Tensor& hidden, const Tensor& queries, const Tensor& keys, int64_t k, int64_t m,
                 std::optional<double> scale, bool has_cls, const std::string& merge,
                 const std::optional<Tensor>& lse) {
  const MergeMode mode = parse_merge("zip_qk", merge);
  check_zip_qk(hidden, queries, keys, k, m, has_cls, lse);
  return run_zip(describe_qk("zip_qk", queries, keys, k, m, scale_or_default(scale, queries.size(3)), has_cls, lse),
                 hidden, mode);
}

Decision select(const Tensor& keys, const Tensor& attn, int64_t k, int64_t m, bool has_cls) {
  check_select(keys, attn, k, m, has_cls);
  return run_select(describe("select", keys, attn, k, m, has_cls));
}

Decision select_qk(const Tensor& queries, const Tensor& keys, int64_t k, int64_t m, std::optional<double> scale,
                   bool has_cls, const std::optional<Tensor>& lse) {
  check_select_qk(queries, keys, k, m, has_cls, lse);
  return run_select(
      describe_qk("select_qk", queries, keys, k, m, scale_or_default(scale, queries.size(3)), has_cls, lse));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(VISIONZIP_LIBRARY, VISIONZIP_CUDA_KEY, m) {
  m.impl("zip", TORCH_BOX(&zip));
  m.impl("zip_qk", TORCH_BOX(&zip_qk));
  m.impl("select", TORCH_BOX(&select));
  m.impl("select_qk", TORCH_BOX(&select_qk));
}

}  // namespace visionzip::cuda
