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

#include "column_sums.h"
#include "common/checks.h"
#include "common/layout.h"
#include "common/library.h"
#include "device.h"
#include "errors.h"
#include "merge_call.h"
#include "zip.h"

namespace visionzip::cuda {

namespace {

using torch::headeronly::ScalarType;
using Decision = std::tuple<Tensor, Tensor>;
using ZipResult = std::tuple<Tensor, Tensor, Tensor>;

// Every row of x starts at a multiple of 16 bytes and is a multiple of 16 bytes long.
bool is_wide(const Tensor& x) {
  const auto size = static_cast<int64_t>(size_of(dtype_of(x)));
  bool wide = reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0 && x.size(x.dim() - 1) * size % 16 == 0;
  for (int64_t d = 0; d + 1 < x.dim(); d++) wide = wide && (x.size(d) == 1 || x.stride(d) * size % 16 == 0);
  return wide;
}

// One call: the tensors that its parameters point into, and what has been found out so far.
struct Call {
  const char* op;
  Tensor keys;
  std::optional<Tensor> attn, queries, lse;
  ZipParams params{};
  ColumnSumsParams sums{};  // where all queries score
  bool has_cls = false;
  double scale = 0;

  bool all_queries_score() const { return queries && !has_cls; }
};

void describe_keys(Call& call, const Tensor& keys, int64_t k, int64_t m) {
  const bool has_heads = keys.dim() == 4;
  ZipParams& p = call.params;
  p.keys = call.keys.const_data_ptr();
  p.key_image = call.keys.stride(0);
  p.key_head = has_heads ? call.keys.stride(1) : 0;
  p.key_token = call.keys.stride(keys.dim() - 2);
  p.images = keys.size(0);
  p.S = static_cast<int32_t>(keys.size(keys.dim() - 2));
  p.H = static_cast<int32_t>(has_heads ? keys.size(1) : 1);
  p.D = static_cast<int32_t>(keys.size(keys.dim() - 1));
  p.k = static_cast<int32_t>(k);
  p.m = static_cast<int32_t>(m);
  p.has_cls = call.has_cls;
  p.wide_keys = is_wide(call.keys);
}

Call describe(const char* op, const Tensor& keys, const Tensor& attn, int64_t k, int64_t m, bool has_cls) {
  Call call{op, unit_stride(keys), unit_stride(attn), {}, {}};
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
  p.attn_queries = p.attn_rows;
  return call;
}

// The attention is the column sums by head and chunk of queries, which take its place: an image's rows as those of any
// attention matrix, but of more than one query each.
void describe_column_sums(Call& call) {
  ZipParams& p = call.params;
  ColumnSumsParams& c = call.sums;
  c.queries = p.queries;
  c.keys = p.keys;
  c.lse = p.lse;
  c.query_image = p.query_image;
  c.query_head = p.query_head;
  c.query_token = call.queries->stride(2);
  c.key_image = p.key_image;
  c.key_head = p.key_head;
  c.key_token = p.key_token;
  c.lse_image = p.lse_image;
  c.lse_head = p.lse_head;
  c.images = p.images;
  c.S = p.S;
  c.H = p.H;
  c.D = p.D;
  c.scale = p.scale;
  c.wide = p.wide_keys && is_wide(*call.queries);
  p.queries = nullptr;
  p.lse = nullptr;
  p.attn_dtype = DType::kFloat32;
  p.attn_heads = p.H;
  p.attn_rows = kSumChunks;
  p.attn_queries = p.S;
  p.attn_row = p.S;
  p.attn_head = p.attn_row * p.attn_rows;
  p.attn_image = p.attn_head * p.attn_heads;
}

// Queries and keys are taken in one dtype; where theirs differ, both as float32.
Call describe_qk(const char* op, const Tensor& queries, const Tensor& keys, int64_t k, int64_t m, double scale,
                 bool has_cls, const std::optional<Tensor>& lse) {
  const auto in_one_dtype = [&](const Tensor& x) {
    return unit_stride(dtype_of(queries) == dtype_of(keys) ? x : torch::stable::to(x, ScalarType::Float));
  };
  Call call{op, in_one_dtype(keys), {}, in_one_dtype(queries), {}};
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
  if (!has_cls) describe_column_sums(call);
  return call;
}

Decision decide_by_reference(const Call& call) {
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
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

// Launches the kernel of column sums, and makes them the fused kernel's attention.
void launch_column_sums(Call& call, DType dtype, const ColumnSumsPlan& chosen, int32_t device) {
  ColumnSumsParams& c = call.sums;
  call.attn = torch::stable::new_empty(call.keys, {c.images, c.H, kSumChunks, c.S}, ScalarType::Float);
  c.sums = call.attn->mutable_data_ptr<float>();
  call.params.attn = c.sums;
  check_launch(call.op, launch_column_sums(c, dtype, chosen, current_stream(device)), device);
}

// Launches the fused kernel, with hidden where that is given.  False where no plan fits.
bool launch_fused(Call& call, const Tensor& indices, const Tensor& assignment, int32_t device) {
  const DType dtype = dtype_of(call.keys);
  const auto element_bytes = static_cast<int32_t>(size_of(dtype));
  ZipParams& p = call.params;
  Gpu gpu{};
  check_launch(call.op, describe_gpu(gpu), device);
  const ZipPlan chosen = plan_zip(p, element_bytes, gpu, forced_path(), forced_team());
  if (chosen.path == Path::kNone) return false;
  if (call.all_queries_score()) {
    const ColumnSumsPlan of_sums = plan_column_sums(call.sums, element_bytes, gpu);
    if (!of_sums.possible) return false;
    launch_column_sums(call, dtype, of_sums, device);
  }
  p.indices = indices.mutable_data_ptr<int64_t>();
  p.assignment = assignment.mutable_data_ptr<int64_t>();
  std::optional<Tensor> scratch;
  if (chosen.scratch_bytes > 0) {
    scratch = torch::stable::new_empty(call.keys, {chosen.scratch_bytes}, ScalarType::Byte);
    p.scratch = scratch->mutable_data_ptr();
  }
  check_launch(call.op, launch_zip(p, dtype, chosen, current_stream(device)), device);
  return true;
}

Decision new_decision(const Call& call) {
  const ZipParams& p = call.params;
  return {torch::stable::new_empty(call.keys, {p.images, p.k}, ScalarType::Long),
          torch::stable::new_empty(call.keys, {p.images, p.S}, ScalarType::Long)};
}

Decision run_select(Call&& call) {
  const int32_t device = device_of(call.keys);
  const DeviceGuard guard(device);
  const auto [indices, assignment] = new_decision(call);
  if (call.params.images == 0 || launch_fused(call, indices, assignment, device)) return {indices, assignment};
  return decide_by_reference(call);
}

// One launch where hidden has the keys' dtype; otherwise, and where no plan fits, the decision first and then the
// merge.
ZipResult run_zip(Call&& call, const Tensor& hidden, MergeMode mode) {
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
    Tensor tokens = torch::stable::new_empty(hidden, {p.images, p.k + p.m, p.C});
    p.tokens = tokens.mutable_data_ptr();
    auto [indices, assignment] = new_decision(call);
    if (launch_fused(call, indices, assignment, device)) return {tokens, indices, assignment};
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

ZipResult zip_qk(const Tensor& hidden, const Tensor& queries, const Tensor& keys, int64_t k, int64_t m, double scale,
                 bool has_cls, const std::string& merge, const std::optional<Tensor>& lse) {
  const MergeMode mode = parse_merge("zip_qk", merge);
  check_zip_qk(hidden, queries, keys, k, m, has_cls, lse);
  return run_zip(describe_qk("zip_qk", queries, keys, k, m, scale, has_cls, lse), hidden, mode);
}

Decision select(const Tensor& keys, const Tensor& attn, int64_t k, int64_t m, bool has_cls) {
  check_select(keys, attn, k, m, has_cls);
  return run_select(describe("select", keys, attn, k, m, has_cls));
}

Decision select_qk(const Tensor& queries, const Tensor& keys, int64_t k, int64_t m, double scale, bool has_cls,
                   const std::optional<Tensor>& lse) {
  check_select_qk(queries, keys, k, m, has_cls, lse);
  return run_select(describe_qk("select_qk", queries, keys, k, m, scale, has_cls, lse));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(VISIONZIP_LIBRARY, VISIONZIP_CUDA_KEY, m) {
  m.impl("zip", TORCH_BOX(&zip));
  m.impl("zip_qk", TORCH_BOX(&zip_qk));
  m.impl("select", TORCH_BOX(&select));
  m.impl("select_qk", TORCH_BOX(&select_qk));
}

}  // namespace visionzip::cuda
