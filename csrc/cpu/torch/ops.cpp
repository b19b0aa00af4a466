// The operators on CPU tensors: checks -> inputs -> execute.  Schemas are in csrc/registration.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "checks/checks.h"
#include "common/layout.h"
#include "cpu/kernels/buffer.h"
#include "cpu/kernels/weights.h"
#include "cpu/torch/execute.h"
#include "cpu/torch/parallel.h"
#include "cpu/torch/tensors.h"

namespace visionzip::cpu {

namespace {

using torch::headeronly::ScalarType;
using Decision = std::tuple<Tensor, Tensor>;
using ZipResult = std::tuple<Tensor, Tensor, Tensor>;

// One call: what it has in common, its images, and the tensors that they point into.
struct Call {
  Tensor keys, indices, assignment;
  std::optional<Tensor> attn{}, queries{}, lse{};
  CallInputs inputs{};
  std::vector<ImageInputs> images{};
};

// Image b's part of a tensor of images.
const void* part_of(const Tensor& x, int64_t b) { return element_of(x, b * x.stride(0)); }

Call describe_keys(const Tensor& keys, int64_t k, int64_t m, const SelectionRule& rule) {
  const bool has_heads = keys.dim() == 4;
  const int64_t B = keys.size(0), S = keys.size(keys.dim() - 2);
  Call call{unit_stride(keys), new_tensor({B, k}, ScalarType::Long), new_tensor({B, S}, ScalarType::Long)};
  CallInputs& in = call.inputs;
  in.problem.operation = Operation::kSelect;
  in.problem.has_cls = rule.has_cls;
  in.problem.policy = rule.policy;
  in.problem.keep_cls = rule.keep_cls;
  in.problem.B = B;
  in.problem.H = has_heads ? keys.size(1) : 1;
  in.problem.D = keys.size(keys.dim() - 1);
  in.keys.dtype = dtype_of(keys);
  in.keys.head_stride = has_heads ? call.keys.stride(1) : 0;
  in.keys.token_stride = call.keys.stride(keys.dim() - 2);
  in.keys.heads = in.problem.H;
  in.keys.D = in.problem.D;
  call.images.resize(static_cast<size_t>(B));
  for (int64_t b = 0; b < B; b++) {
    ImageInputs& image = call.images[static_cast<size_t>(b)];
    image.S = S;
    image.k = k;
    image.m = m;
    image.keys = part_of(call.keys, b);
    image.indices = call.indices.mutable_data_ptr<int64_t>() + b * k;
    image.assignment = call.assignment.mutable_data_ptr<int64_t>() + b * S;
  }
  return call;
}

Call describe(const Tensor& keys, const Tensor& attn, int64_t k, int64_t m, const SelectionRule& rule) {
  Call call = describe_keys(keys, k, m, rule);
  const Tensor& a = call.attn.emplace(unit_stride(attn));
  const int64_t rank = attn.dim();
  call.inputs.problem.source = rank == 2 ? ScoreSource::kScores : rank == 3 ? ScoreSource::kRows : ScoreSource::kMatrix;
  AttentionRows& rows = call.inputs.attn;
  rows.dtype = dtype_of(a);
  rows.head_stride = rank > 2 ? a.stride(1) : 0;
  rows.row_stride = rank == 4 ? a.stride(2) : 0;
  rows.heads = rank > 2 ? a.size(1) : 1;
  rows.rows = rank == 4 && !rule.has_cls ? a.size(2) : 1;
  for (size_t b = 0; b < call.images.size(); b++) call.images[b].attn = part_of(a, static_cast<int64_t>(b));
  return call;
}

Call describe_qk(const Tensor& queries, const Tensor& keys, int64_t k, int64_t m, double scale,
                 const SelectionRule& rule, const std::optional<Tensor>& lse) {
  Call call = describe_keys(in_common_dtype(keys, queries), k, m, rule);
  call.inputs.problem.source = ScoreSource::kQueryKey;
  const Tensor& q = call.queries.emplace(in_common_dtype(queries, keys));
  call.inputs.query_head_stride = q.stride(1);
  call.inputs.query_token_stride = q.stride(2);
  call.inputs.scale = static_cast<float>(scale);
  if (lse) call.inputs.lse_head_stride = call.lse.emplace(unit_stride(*lse)).stride(1);
  for (size_t i = 0; i < call.images.size(); i++) {
    const auto b = static_cast<int64_t>(i);
    call.images[i].queries = part_of(q, b);
    if (lse) call.images[i].lse = call.lse->const_data_ptr<float>() + b * call.lse->stride(0);
  }
  return call;
}

// What is merged, and where to: flat (B, S, C), out (B, k + m, *).
void describe_merge(CallInputs& inputs, std::vector<ImageInputs>& images, const Tensor& flat, const Tensor& out,
                    MergeMode mode) {
  inputs.problem.C = flat.size(2);
  inputs.dtype = dtype_of(flat);
  inputs.token_stride = flat.stride(1);
  inputs.mode = mode;
  for (size_t b = 0; b < images.size(); b++) {
    images[b].x = part_of(flat, static_cast<int64_t>(b));
    images[b].out = mutable_element_of(out, static_cast<int64_t>(b) * out.stride(0));
  }
}

ZipResult run_zip(Call&& call, const Tensor& hidden, int64_t rows, MergeMode mode) {
  const Tensor flat = flat_channels(hidden, 2);
  call.inputs.problem.operation = Operation::kZip;
  const Tensor tokens = new_tensor({hidden.size(0), rows, hidden.size(2)}, hidden.scalar_type());
  describe_merge(call.inputs, call.images, flat, tokens, mode);
  execute_batch(call.inputs, call.images);
  return {tokens, call.indices, call.assignment};
}

Decision run_select(Call&& call) {
  execute_batch(call.inputs, call.images);
  return {call.indices, call.assignment};
}

ZipResult zip(const Tensor& hidden, const Tensor& keys, const Tensor& attn, int64_t k, int64_t m, bool has_cls,
              const std::string& merge, const std::string& policy, bool keep_cls) {
  const MergeMode mode = parse_merge("zip", merge);
  const SelectionRule rule = parse_rule("zip", has_cls, policy, keep_cls);
  check_zip(hidden, keys, attn, k, m, rule);
  return run_zip(describe(keys, attn, k, m, rule), hidden, k + m, mode);
}

ZipResult zip_qk(const Tensor& hidden, const Tensor& queries, const Tensor& keys, int64_t k, int64_t m,
                 std::optional<double> scale, bool has_cls, const std::string& merge, const std::optional<Tensor>& lse,
                 const std::string& policy, bool keep_cls) {
  const MergeMode mode = parse_merge("zip_qk", merge);
  const SelectionRule rule = parse_rule("zip_qk", has_cls, policy, keep_cls);
  check_zip_qk(hidden, queries, keys, k, m, rule, lse);
  return run_zip(describe_qk(queries, keys, k, m, scale_or_default(scale, queries.size(3)), rule, lse), hidden, k + m,
                 mode);
}

Decision select(const Tensor& keys, const Tensor& attn, int64_t k, int64_t m, bool has_cls, const std::string& policy,
                bool keep_cls) {
  const SelectionRule rule = parse_rule("select", has_cls, policy, keep_cls);
  check_select(keys, attn, k, m, rule);
  return run_select(describe(keys, attn, k, m, rule));
}

Decision select_qk(const Tensor& queries, const Tensor& keys, int64_t k, int64_t m, std::optional<double> scale,
                   bool has_cls, const std::optional<Tensor>& lse, const std::string& policy, bool keep_cls) {
  const SelectionRule rule = parse_rule("select_qk", has_cls, policy, keep_cls);
  check_select_qk(queries, keys, k, m, rule, lse);
  return run_select(describe_qk(queries, keys, k, m, scale_or_default(scale, queries.size(3)), rule, lse));
}

Tensor merge(const Tensor& x, const Tensor& assignment, int64_t k, int64_t m, const std::string& merge) {
  const MergeMode mode = parse_merge("merge", merge);
  check_merge(x, assignment, k, m);
  const Tensor flat = flat_channels(x, 2), rows = torch::stable::contiguous(assignment);
  Tensor out = new_tensor(with_size(x, 1, k + m), x.scalar_type());
  CallInputs inputs{};
  inputs.problem.operation = Operation::kMerge;
  inputs.problem.B = x.size(0);
  std::vector<ImageInputs> images(static_cast<size_t>(x.size(0)));
  for (size_t i = 0; i < images.size(); i++) {
    const auto b = static_cast<int64_t>(i);
    images[i].S = x.size(1);
    images[i].k = k;
    images[i].m = m;
    images[i].assigned = rows.const_data_ptr<int64_t>() + b * x.size(1);
    images[i].place = {"merge", b};
  }
  describe_merge(inputs, images, flat, out, mode);
  execute_batch(inputs, images);
  return out;
}

Tensor merge_backward(const Tensor& grad, const Tensor& assignment, int64_t k, int64_t m, const std::string& merge) {
  const MergeMode mode = parse_merge("merge_backward", merge);
  check_merge_backward(grad, assignment, k, m);
  const Tensor flat = flat_channels(grad, 2), rows = torch::stable::contiguous(assignment);
  const int64_t B = assignment.size(0), S = assignment.size(1), C = flat.size(2);
  const int64_t* assigned = rows.const_data_ptr<int64_t>();
  Tensor out = new_tensor(with_size(grad, 1, S), grad.scalar_type());

  Buffer weights;
  float* weight = weights.floats(B * S);
  parallel(B, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; b++) {
      const Selection selection = read_decision({"merge_backward", b}, assigned + b * S, S, k, m);
      token_weights(assigned + b * S, selection, k, mode, weight + b * S);
    }
  });

  const auto element = static_cast<int64_t>(size_of(dtype_of(grad)));
  const auto* in = static_cast<const char*>(flat.const_data_ptr());
  auto* to = static_cast<char*>(out.mutable_data_ptr());
  constexpr int64_t kTokens = 32;  // the fewest that are worth a thread
  parallel(B * S, kTokens, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin / S; b * S < end; b++) {
      const MergeBackwardTask task{in + b * flat.stride(0) * element,
                                   to + b * S * C * element,
                                   dtype_of(grad),
                                   flat.stride(1),
                                   C,
                                   assigned + b * S,
                                   weight + b * S};
      kernels().merge_backward(task, std::max(begin - b * S, int64_t{0}), std::min(end - b * S, S));
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(visionzip, CPU, m) {
  m.impl("zip", TORCH_BOX(&zip));
  m.impl("zip_qk", TORCH_BOX(&zip_qk));
  m.impl("select", TORCH_BOX(&select));
  m.impl("select_qk", TORCH_BOX(&select_qk));
  m.impl("merge", TORCH_BOX(&merge));
  m.impl("merge_backward", TORCH_BOX(&merge_backward));
}

}  // namespace visionzip::cpu
