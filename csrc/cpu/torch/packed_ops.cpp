// The operators on packed sequences of CPU tensors: checks -> inputs -> execute.  Schemas are in csrc/registration.cpp.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "checks/checks.h"
#include "checks/packed_checks.h"
#include "common/layout.h"
#include "cpu/kernels/buffer.h"
#include "cpu/kernels/weights.h"
#include "cpu/torch/execute.h"
#include "cpu/torch/parallel.h"
#include "cpu/torch/tensors.h"

namespace visionzip::cpu {

namespace {

using torch::headeronly::ScalarType;
using Numbers = std::vector<int64_t>;
using OptionalTensor = std::optional<Tensor>;
using Decision = std::tuple<Tensor, Tensor, Tensor>;
using ZipResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// Where a sequence's tokens, output rows and kept tokens begin in the packed tensors.
struct Place {
  int64_t number, S, k, m, first_token, first_row, first_kept;
};

// All of them, and the totals.
struct Places {
  std::vector<Place> sequences;
  int64_t rows = 0, kept = 0;
};

Places place_sequences(const char* op, const Tensor& cu_seqlens, int64_t T, const Numbers& k, const Numbers& m,
                       std::optional<int64_t> max_seqlen, bool keep_cls = true) {
  const Tensor contiguous = torch::stable::contiguous(cu_seqlens);
  const auto* starts = contiguous.const_data_ptr<int32_t>();
  check_sequences(op, starts, T, k, m, max_seqlen, keep_cls);
  Places places;
  places.sequences.reserve(k.size());
  for (size_t i = 0; i < k.size(); i++) {
    places.sequences.push_back(
        {static_cast<int64_t>(i), starts[i + 1] - starts[i], k[i], m[i], starts[i], places.rows, places.kept});
    places.rows += k[i] + m[i];
    places.kept += k[i];
  }
  return places;
}

// One call: what it has in common, its images, and the tensors that they point into.
struct Call {
  Tensor keys, indices, assignment, row_starts;
  OptionalTensor queries{}, scores{}, lse{};
  CallInputs inputs{};
  Places places{};
};

Tensor row_starts_of(const Places& places) {
  Tensor starts = new_tensor({static_cast<int64_t>(places.sequences.size()) + 1}, ScalarType::Int);
  auto* out = starts.mutable_data_ptr<int32_t>();
  for (const Place& place : places.sequences) *out++ = static_cast<int32_t>(place.first_row);
  *out = static_cast<int32_t>(places.rows);
  return starts;
}

void take_queries(Call& call, const PackedArguments& a) {
  const Tensor& q = call.queries.emplace(in_common_dtype(*a.queries, a.keys));
  call.inputs.problem.source = ScoreSource::kQueryKey;
  call.inputs.query_head_stride = q.stride(1);
  call.inputs.query_token_stride = q.stride(0);
  call.inputs.scale = static_cast<float>(*a.scale);
  if (a.lse) call.inputs.lse_head_stride = call.lse.emplace(unit_stride(*a.lse)).stride(0);
}

void take_scores(Call& call, const PackedArguments& a) {
  const Tensor& s = call.scores.emplace(unit_stride(*a.scores));
  call.inputs.problem.source = ScoreSource::kScores;
  call.inputs.attn.dtype = dtype_of(s);
  call.inputs.attn.heads = 1;
  call.inputs.attn.rows = 1;
}

Call describe(const char* op, const PackedArguments& a) {
  const int64_t T = a.keys.size(0) / a.group;
  Places places = place_sequences(op, a.cu_seqlens, T, a.k, a.m, a.max_seqlen, a.rule.keep_cls);
  Call call{a.queries ? in_common_dtype(a.keys, *a.queries) : unit_stride(a.keys),
            new_tensor({places.kept}, ScalarType::Long), new_tensor({T}, ScalarType::Long), row_starts_of(places)};
  call.places = std::move(places);
  CallInputs& in = call.inputs;
  if (a.queries) {
    take_queries(call, a);
  } else {
    take_scores(call, a);
  }
  const bool has_heads = a.keys.dim() == 3;
  in.problem.operation = Operation::kSelect;
  in.problem.has_cls = a.rule.has_cls;
  in.problem.policy = a.rule.policy;
  in.problem.keep_cls = a.rule.keep_cls;
  in.problem.group = a.group;
  in.problem.H = has_heads ? a.keys.size(1) : 1;
  in.problem.D = a.keys.size(a.keys.dim() - 1);
  in.keys.dtype = dtype_of(call.keys);
  in.keys.head_stride = has_heads ? call.keys.stride(1) : 0;
  in.keys.token_stride = call.keys.stride(0);
  in.keys.heads = in.problem.H;
  in.keys.D = in.problem.D;
  return call;
}

DecisionPlace decision_of(const char* op, const Place& place) {
  return {op, place.number, true, place.first_token, place.first_row};
}

ImageInputs describe_image(const char* op, const Place& place) {
  ImageInputs image{};
  image.S = place.S;
  image.k = place.k;
  image.m = place.m;
  image.place = decision_of(op, place);
  return image;
}

// Those that have rows at all.  hidden, tokens: null where nothing is merged.
std::vector<ImageInputs> describe_images(const char* op, const Call& call, const Tensor* hidden, const Tensor* tokens) {
  int64_t* assignment = call.assignment.mutable_data_ptr<int64_t>();
  const int64_t group = call.inputs.problem.group;
  std::vector<ImageInputs> images;
  for (const Place& place : call.places.sequences) {
    ImageInputs image = describe_image(op, place);
    image.assignment = assignment + place.first_token;
    if (place.k + place.m == 0) {
      std::fill_n(image.assignment, place.S, int64_t{-1});
      continue;
    }
    const int64_t cell = place.first_token * group;
    image.keys = element_of(call.keys, cell * call.keys.stride(0));
    if (call.queries) image.queries = element_of(*call.queries, cell * call.queries->stride(0));
    if (call.scores) image.attn = element_of(*call.scores, cell);
    if (call.lse) image.lse = call.lse->const_data_ptr<float>() + cell;
    image.indices = call.indices.mutable_data_ptr<int64_t>() + place.first_kept;
    if (hidden) {
      image.x = element_of(*hidden, place.first_token * hidden->stride(0));
      image.out = mutable_element_of(*tokens, place.first_row * tokens->size(1));
    }
    images.push_back(image);
  }
  return images;
}

void describe_merge(CallInputs& inputs, const Tensor& flat, MergeMode mode) {
  inputs.problem.C = flat.size(1);
  inputs.dtype = dtype_of(flat);
  inputs.token_stride = flat.stride(0);
  inputs.mode = mode;
}

ZipResult zip_packed(const Tensor& hidden, const Tensor& keys, const Tensor& cu_seqlens, const Numbers& k,
                     const Numbers& m, const OptionalTensor& queries, const OptionalTensor& scores,
                     std::optional<double> scale, const OptionalTensor& lse, std::optional<int64_t> max_seqlen,
                     int64_t group, bool has_cls, const std::string& merge, const std::string& policy, bool keep_cls) {
  const char* op = "zip_packed";
  const MergeMode mode = parse_merge(op, merge);
  const SelectionRule rule = parse_rule(op, has_cls, policy, keep_cls);
  PackedArguments arguments{keys, cu_seqlens, k, m, queries, scores, scale, lse, max_seqlen, group, rule};
  check_zip_packed(hidden, arguments);
  Call call = describe(op, arguments);
  const Tensor flat = unit_stride(hidden);
  call.inputs.problem.operation = Operation::kZip;
  describe_merge(call.inputs, flat, mode);
  const Tensor tokens = new_tensor({call.places.rows, flat.size(1)}, hidden.scalar_type());
  execute_packed(call.inputs, describe_images(op, call, &flat, &tokens));
  return {tokens, call.indices, call.assignment, call.row_starts};
}

Decision select_packed(const Tensor& keys, const Tensor& cu_seqlens, const Numbers& k, const Numbers& m,
                       const OptionalTensor& queries, const OptionalTensor& scores, std::optional<double> scale,
                       const OptionalTensor& lse, std::optional<int64_t> max_seqlen, int64_t group, bool has_cls,
                       const std::string& policy, bool keep_cls) {
  const char* op = "select_packed";
  const SelectionRule rule = parse_rule(op, has_cls, policy, keep_cls);
  PackedArguments arguments{keys, cu_seqlens, k, m, queries, scores, scale, lse, max_seqlen, group, rule};
  check_select_packed(arguments);
  const Call call = describe(op, arguments);
  execute_packed(call.inputs, describe_images(op, call, nullptr, nullptr));
  return {call.indices, call.assignment, call.row_starts};
}

Tensor merge_packed(const Tensor& x, const Tensor& assignment, const Tensor& cu_seqlens, const Numbers& k,
                    const Numbers& m, const std::string& merge) {
  const char* op = "merge_packed";
  const MergeMode mode = parse_merge(op, merge);
  Numbers each_k = k, each_m = m;
  check_merge_packed(x, assignment, cu_seqlens, each_k, each_m);
  const Places places = place_sequences(op, cu_seqlens, x.size(0), each_k, each_m, {});
  const Tensor flat = flat_channels(x, 1), given = torch::stable::contiguous(assignment);
  Tensor out = new_tensor(with_size(x, 0, places.rows), x.scalar_type());
  CallInputs inputs{};
  inputs.problem.operation = Operation::kMerge;
  describe_merge(inputs, flat, mode);
  std::vector<ImageInputs> images;
  for (const Place& place : places.sequences) {
    ImageInputs image = describe_image(op, place);
    image.assigned = given.const_data_ptr<int64_t>() + place.first_token;
    image.x = element_of(flat, place.first_token * flat.stride(0));
    image.out = mutable_element_of(out, place.first_row * flat.size(1));
    images.push_back(image);
  }
  execute_packed(inputs, images);
  return out;
}

Tensor merge_packed_backward(const Tensor& grad, const Tensor& assignment, const Tensor& cu_seqlens, const Numbers& k,
                             const Numbers& m, const std::string& merge) {
  const char* op = "merge_packed_backward";
  const MergeMode mode = parse_merge(op, merge);
  Numbers each_k = k, each_m = m;
  check_merge_packed_backward(grad, assignment, cu_seqlens, each_k, each_m);
  const int64_t T = assignment.size(0);
  const Places places = place_sequences(op, cu_seqlens, T, each_k, each_m, {});
  const Tensor flat = flat_channels(grad, 1), given = torch::stable::contiguous(assignment);
  const int64_t* assigned = given.const_data_ptr<int64_t>();
  Tensor out = new_tensor(with_size(grad, 0, T), grad.scalar_type());

  Buffer weights;
  float* weight = weights.floats(T);
  parallel(static_cast<int64_t>(places.sequences.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const Place& place = places.sequences[static_cast<size_t>(i)];
      const int64_t* own = assigned + place.first_token;
      const Selection selection = read_decision(decision_of(op, place), own, place.S, place.k, place.m);
      token_weights(own, selection, place.first_row + place.k, mode, weight + place.first_token);
    }
  });

  // Rows are numbered across all sequences: one task for all of them.
  const MergeBackwardTask task{
      flat.const_data_ptr(), out.mutable_data_ptr(), dtype_of(grad), flat.stride(0), flat.size(1), assigned, weight};
  constexpr int64_t kTokens = 32;  // the fewest that are worth a thread
  parallel(T, kTokens, [&](int64_t begin, int64_t end) { kernels().merge_backward(task, begin, end); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(visionzip, CPU, m) {
  m.impl("zip_packed", TORCH_BOX(&zip_packed));
  m.impl("select_packed", TORCH_BOX(&select_packed));
  m.impl("merge_packed", TORCH_BOX(&merge_packed));
  m.impl("merge_packed_backward", TORCH_BOX(&merge_packed_backward));
}

}  // namespace visionzip::cpu
