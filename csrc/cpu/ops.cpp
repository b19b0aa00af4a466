// The operators on CPU tensors: checks -> problem -> execute.  Schemas are in csrc/registration.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "buffer.h"
#include "common/checks.h"
#include "common/layout.h"
#include "execute.h"
#include "parallel.h"

namespace visionzip::cpu {

namespace {

using torch::headeronly::ScalarType;
using Decision = std::tuple<Tensor, Tensor>;
using ZipResult = std::tuple<Tensor, Tensor, Tensor>;

Tensor new_tensor(const std::vector<int64_t>& sizes, ScalarType dtype) { return torch::stable::empty(sizes, dtype); }

// Owns the tensors that a DecisionInputs points into.
struct DecisionTensors {
  Tensor keys, indices, assignment;
  std::optional<Tensor> attn, queries, lse;
  DecisionInputs inputs{};
  Problem problem{};
};

DecisionTensors describe_keys(const Tensor& keys, int64_t k, int64_t m, bool has_cls) {
  const bool has_heads = keys.dim() == 4;
  const int64_t B = keys.size(0), S = keys.size(keys.dim() - 2);
  DecisionTensors d{
      unit_stride(keys), new_tensor({B, k}, ScalarType::Long), new_tensor({B, S}, ScalarType::Long), {}, {}, {}};
  d.problem.operation = Operation::kSelect;
  d.problem.has_cls = has_cls;
  d.problem.B = B;
  d.problem.S = S;
  d.problem.H = has_heads ? keys.size(1) : 1;
  d.problem.D = keys.size(keys.dim() - 1);
  d.problem.k = k;
  d.problem.m = m;
  const int64_t token_dim = keys.dim() - 2;
  d.inputs.keys = {d.keys.const_data_ptr(),  dtype_of(keys), has_heads ? d.keys.stride(1) : 0,
                   d.keys.stride(token_dim), d.problem.H,    d.problem.D};
  d.inputs.key_image_stride = d.keys.stride(0);
  d.inputs.indices = d.indices.mutable_data_ptr<int64_t>();
  d.inputs.assignment = d.assignment.mutable_data_ptr<int64_t>();
  return d;
}

DecisionTensors describe(const Tensor& keys, const Tensor& attn, int64_t k, int64_t m, bool has_cls) {
  DecisionTensors d = describe_keys(keys, k, m, has_cls);
  const Tensor& a = d.attn.emplace(unit_stride(attn));
  const int64_t rank = attn.dim();
  d.problem.source = rank == 2 ? ScoreSource::kScores : rank == 3 ? ScoreSource::kRows : ScoreSource::kMatrix;
  const bool all_rows = rank == 4 && !has_cls;
  d.inputs.attn = {a.const_data_ptr(),
                   dtype_of(a),
                   rank > 2 ? a.stride(1) : 0,
                   rank == 4 ? a.stride(2) : 0,
                   rank > 2 ? a.size(1) : 1,
                   all_rows ? a.size(2) : 1,
                   d.problem.S};
  d.inputs.attn_image_stride = a.stride(0);
  return d;
}

// Queries and keys are taken in one dtype; where theirs differ, both as float32.
DecisionTensors describe_qk(const Tensor& queries, const Tensor& keys, int64_t k, int64_t m, double scale, bool has_cls,
                            const std::optional<Tensor>& lse) {
  const bool same = queries.scalar_type() == keys.scalar_type();
  DecisionTensors d = describe_keys(same ? keys : torch::stable::to(keys, ScalarType::Float), k, m, has_cls);
  d.problem.source = ScoreSource::kQueryKey;
  const Tensor& q = d.queries.emplace(unit_stride(same ? queries : torch::stable::to(queries, ScalarType::Float)));
  d.inputs.queries = q.const_data_ptr();
  d.inputs.query_image_stride = q.stride(0);
  d.inputs.query_head_stride = q.stride(1);
  d.inputs.query_token_stride = q.stride(2);
  d.inputs.scale = static_cast<float>(scale);
  if (lse) {
    const Tensor& l = d.lse.emplace(unit_stride(*lse));
    d.inputs.lse = l.const_data_ptr<float>();
    d.inputs.lse_image_stride = l.stride(0);
    d.inputs.lse_head_stride = l.stride(1);
  }
  return d;
}

MergeInputs describe_merge(const Tensor& flat, const Tensor& tokens, const int64_t* assignment, MergeMode mode) {
  return {flat.const_data_ptr(),
          dtype_of(flat),
          flat.stride(0),
          flat.stride(1),
          tokens.mutable_data_ptr(),
          assignment,
          mode};
}

ZipResult run_zip(DecisionTensors&& d, const Tensor& hidden, MergeMode mode) {
  const Tensor flat = flat_channels(hidden);
  d.problem.operation = Operation::kZip;
  d.problem.C = hidden.size(2);
  Tensor tokens = new_tensor({d.problem.B, d.problem.k + d.problem.m, d.problem.C}, hidden.scalar_type());
  const MergeInputs merge = describe_merge(flat, tokens, d.inputs.assignment, mode);
  execute(d.problem, &d.inputs, &merge);
  return {tokens, d.indices, d.assignment};
}

Decision run_select(DecisionTensors&& d) {
  execute(d.problem, &d.inputs, nullptr);
  return {d.indices, d.assignment};
}

ZipResult zip(const Tensor& hidden, const Tensor& keys, const Tensor& attn, int64_t k, int64_t m, bool has_cls,
              const std::string& merge) {
  const MergeMode mode = parse_merge("zip", merge);
  check_zip(hidden, keys, attn, k, m, has_cls);
  return run_zip(describe(keys, attn, k, m, has_cls), hidden, mode);
}

ZipResult zip_qk(const Tensor& hidden, const Tensor& queries, const Tensor& keys, int64_t k, int64_t m, double scale,
                 bool has_cls, const std::string& merge, const std::optional<Tensor>& lse) {
  const MergeMode mode = parse_merge("zip_qk", merge);
  check_zip_qk(hidden, queries, keys, k, m, has_cls, lse);
  return run_zip(describe_qk(queries, keys, k, m, scale, has_cls, lse), hidden, mode);
}

Decision select(const Tensor& keys, const Tensor& attn, int64_t k, int64_t m, bool has_cls) {
  check_select(keys, attn, k, m, has_cls);
  return run_select(describe(keys, attn, k, m, has_cls));
}

Decision select_qk(const Tensor& queries, const Tensor& keys, int64_t k, int64_t m, double scale, bool has_cls,
                   const std::optional<Tensor>& lse) {
  check_select_qk(queries, keys, k, m, has_cls, lse);
  return run_select(describe_qk(queries, keys, k, m, scale, has_cls, lse));
}

Tensor merge(const Tensor& x, const Tensor& assignment, int64_t k, int64_t m, const std::string& merge) {
  const MergeMode mode = parse_merge("merge", merge);
  check_merge(x, assignment, k, m);
  const Tensor flat = flat_channels(x), rows = torch::stable::contiguous(assignment);
  Tensor out = new_tensor(with_rows(x, k + m), x.scalar_type());
  Problem problem{};
  problem.operation = Operation::kMerge;
  problem.B = x.size(0);
  problem.S = x.size(1);
  problem.C = flat.size(2);
  problem.k = k;
  problem.m = m;
  const MergeInputs inputs = describe_merge(flat, out, rows.const_data_ptr<int64_t>(), mode);
  execute(problem, nullptr, &inputs);
  return out;
}

// Each token's weight in its row, for one image.
void token_weights(const int64_t* assignment, const Selection& selection, int64_t k, int64_t m, MergeMode mode,
                   float* weights) {
  std::vector<int64_t> counts(static_cast<size_t>(m));
  for (const int64_t token : selection.merged) counts[static_cast<size_t>(assignment[token] - k)]++;
  const bool mean = mode == MergeMode::kMean;
  for (const int64_t token : selection.kept) weights[token] = 1.f;
  for (const int64_t token : selection.merged) {
    const int64_t n = counts[static_cast<size_t>(assignment[token] - k)];
    weights[token] = 1.f / static_cast<float>(mean ? n + 1 : n);
  }
  for (size_t t = 0; t < selection.targets.size(); t++) {
    weights[selection.targets[t]] = mean ? 1.f / static_cast<float>(counts[t] + 1) : 1.f;
  }
}

Tensor merge_backward(const Tensor& grad, const Tensor& assignment, int64_t k, int64_t m, const std::string& merge) {
  const MergeMode mode = parse_merge("merge_backward", merge);
  check_merge_backward(grad, assignment, k, m);
  const Tensor flat = flat_channels(grad), rows = torch::stable::contiguous(assignment);
  const int64_t B = assignment.size(0), S = assignment.size(1), C = flat.size(2);
  const int64_t* assigned = rows.const_data_ptr<int64_t>();
  Tensor out = new_tensor(with_rows(grad, S), grad.scalar_type());

  Buffer weights;
  float* weight = weights.floats(B * S);
  parallel(B, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; b++) {
      const Selection selection = read_decision("merge_backward", assigned + b * S, b, S, k, m);
      token_weights(assigned + b * S, selection, k, m, mode, weight + b * S);
    }
  });

  const auto element = static_cast<int64_t>(size_of(dtype_of(grad)));
  const auto* in = static_cast<const char*>(flat.const_data_ptr());
  auto* to = static_cast<char*>(out.mutable_data_ptr());
  constexpr int64_t kTokens = 32;  // the fewest that are worth a thread
  parallel(B * S, kTokens, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin / S; b * S < end; b++) {
      const SpreadTask task{in + b * flat.stride(0) * element,
                            to + b * S * C * element,
                            dtype_of(grad),
                            flat.stride(1),
                            C,
                            assigned + b * S,
                            weight + b * S};
      kernels().spread(task, std::max(begin - b * S, int64_t{0}), std::min(end - b * S, S));
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
