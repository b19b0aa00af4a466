// The operators on packed images of CUDA tensors: checks -> problem -> plan -> params -> launch.
//
// A small kernel works out where each image lies; then come the launches that a batch has.  The host never reads
// cu_seqlens.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "checks/checks.h"
#include "checks/packed_checks.h"
#include "common/layout.h"
#include "common/library.h"
#include "cuda/kernels/place.h"
#include "cuda/torch/device.h"
#include "cuda/torch/errors.h"
#include "cuda/torch/merge_call.h"
#include "cuda/torch/zip_call.h"

namespace visionzip::cuda {

namespace {

using torch::headeronly::ScalarType;
using Numbers = std::vector<int64_t>;
using OptionalTensor = std::optional<Tensor>;
using Decision = std::tuple<Tensor, Tensor, Tensor>;
using ZipResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;

int64_t sum_of(const Numbers& numbers) { return std::accumulate(numbers.begin(), numbers.end(), int64_t{0}); }

int32_t most_of(const Numbers& numbers) {
  return numbers.empty() ? 0 : static_cast<int32_t>(*std::max_element(numbers.begin(), numbers.end()));
}

// The packed images of one call, and the memory for where they lie.
class Images {
 public:
  Images(const char* op, const Tensor& cu_seqlens, int64_t tokens, const Numbers& k, const Numbers& m)
      : op_(op), starts_(torch::stable::contiguous(cu_seqlens)), tokens_(tokens), k_(k), m_(m) {
    if (count() == 0 && tokens > 0) {
      throw std::runtime_error("visionzip::" + std::string(op) +
                               ": cu_seqlens has shape (1); expected (n + 1), n > 0, " +
                               "for T = " + std::to_string(tokens) + " tokens");
    }
    const auto each = static_cast<int64_t>(sizeof(Sequence) + sizeof(int32_t));
    places_ = torch::stable::new_empty(starts_, {count() * each}, ScalarType::Byte);
  }

  int64_t count() const { return static_cast<int64_t>(k_.size()); }
  int64_t tokens() const { return tokens_; }
  int64_t rows() const { return kept() + sum_of(m_); }
  int64_t kept() const { return sum_of(k_); }
  const Numbers& k() const { return k_; }
  const Numbers& m() const { return m_; }

  Sequence* sequences() const { return static_cast<Sequence*>(places_.mutable_data_ptr()); }
  int32_t* order() const { return reinterpret_cast<int32_t*>(sequences() + count()); }

  // longest: a bound that the GPU holds every image to.  rowless: tokens of each that take no row, 0 or 1.
  void place(int64_t longest, int32_t rowless, const Tensor* row_starts, int32_t device) const {
    const Packing packing{starts_.const_data_ptr<int32_t>(), static_cast<int32_t>(count()),
                          static_cast<int32_t>(tokens_), static_cast<int32_t>(longest), rowless};
    const PlacedSequences placed{sequences(), order(), row_starts ? row_starts->mutable_data_ptr<int32_t>() : nullptr};
    check_launch(op_, launch_place(packing, k_, m_, placed, current_stream(device)), device);
  }

 private:
  const char* op_;
  Tensor starts_, places_;
  int64_t tokens_;
  Numbers k_, m_;
};

struct PackedCall {
  PackedArguments arguments;
  Images images;
  ZipCall zip;  // but for the most tokens that an image has
  Tensor row_starts;
};

ZipProblem describe_problem(const PackedArguments& a, const Tensor& keys, const Images& images) {
  const bool has_heads = keys.dim() == 3;
  ZipProblem problem{};
  problem.dtype = dtype_of(keys);
  problem.source = a.queries ? ScoreSource::kQueryKey : ScoreSource::kScores;
  problem.has_cls = a.rule.has_cls;
  problem.policy = a.rule.policy;
  problem.keep_cls = a.rule.keep_cls;
  problem.has_lse = a.queries && a.lse;
  problem.packed = true;
  problem.scale = static_cast<float>(a.scale.value_or(0));
  problem.k = most_of(images.k());
  problem.m = most_of(images.m());
  problem.H = static_cast<int32_t>(has_heads ? keys.size(1) : 1);
  problem.D = static_cast<int32_t>(keys.size(keys.dim() - 1));
  problem.attn_heads = a.queries ? problem.H : 1;
  problem.group = static_cast<int32_t>(a.group);
  problem.images = images.count();
  problem.all_tokens = images.tokens();
  return problem;
}

void take_queries(ZipCall& call, const PackedArguments& a) {
  const Tensor& q = call.queries.emplace(in_common_dtype(*a.queries, a.keys));
  call.tensors.queries = q.const_data_ptr();
  call.tensors.query_image = call.tensors.query_token = q.stride(0);
  call.tensors.query_head = q.stride(1);
  call.tensors.wide_queries = is_wide(q);
  if (!a.lse) return;
  const Tensor& lse = call.lse.emplace(unit_stride(*a.lse));
  call.tensors.lse = lse.const_data_ptr<float>();
  call.tensors.lse_image = 1;
  call.tensors.lse_head = lse.stride(0);
}

void take_scores(ZipCall& call, const PackedArguments& a) {
  const Tensor& scores = call.attn.emplace(unit_stride(*a.scores));
  call.tensors.attn = scores.const_data_ptr();
  call.tensors.attn_dtype = dtype_of(scores);
  call.tensors.attn_image = a.group;
}

ZipCall describe_zip(const char* op, const PackedArguments& a, const Images& images) {
  const Tensor keys = a.queries ? in_common_dtype(a.keys, *a.queries) : unit_stride(a.keys);
  const Tensor indices = torch::stable::new_empty(keys, {images.kept()}, ScalarType::Long);
  const Tensor assignment = torch::stable::new_empty(keys, {images.tokens()}, ScalarType::Long);
  ZipTensors tensors{};
  tensors.keys = keys.const_data_ptr();
  tensors.key_token = keys.stride(0);
  tensors.key_image = tensors.key_token * a.group;
  tensors.key_head = keys.dim() == 3 ? keys.stride(1) : 0;
  tensors.wide_keys = is_wide(keys);
  tensors.sequences = images.sequences();
  tensors.order = images.order();
  tensors.indices = indices.mutable_data_ptr<int64_t>();
  tensors.assignment = assignment.mutable_data_ptr<int64_t>();
  ZipCall call{op, describe_problem(a, keys, images), tensors, keys, {}, {}, {}, indices, assignment};
  if (a.queries) {
    take_queries(call, a);
  } else {
    take_scores(call, a);
  }
  return call;
}

PackedCall describe(const char* op, PackedArguments&& a) {
  Images images(op, a.cu_seqlens, a.keys.size(0) / a.group, a.k, a.m);
  ZipCall zip = describe_zip(op, a, images);
  Tensor row_starts = torch::stable::new_empty(a.keys, {images.count() + 1}, ScalarType::Int);
  return {std::move(a), std::move(images), std::move(zip), row_starts};
}

// Without max_seqlen an image may have all tokens.
ZipCall bounded(ZipCall zip, const PackedCall& call) {
  const int64_t tokens = call.images.tokens();
  zip.problem.S = static_cast<int32_t>(std::min(call.arguments.max_seqlen.value_or(tokens), tokens));
  return zip;
}

// zip: bounded.
void place_and_launch(const PackedCall& call, const ZipCall& zip, const ZipPlan& plan, int32_t device) {
  call.images.place(zip.problem.S, rowless_tokens(zip.problem), &call.row_starts, device);
  if (call.images.tokens() > 0) launch_call(zip, plan, device);
}

// Afterwards the images are placed, as a merge needs them to be.
Decision decide(const PackedCall& call, int32_t device) {
  const ZipCall zip = bounded(call.zip, call);
  place_and_launch(call, zip, plan_call(zip, device), device);
  return {zip.indices, zip.assignment, call.row_starts};
}

// Merges the tokens of images that are placed, or runs the adjoint.
Tensor merge_placed(const char* op, const Tensor& x, const Tensor& assignment, const Images& images, MergeMode mode,
                    bool backward) {
  const MergeProblem problem{.dtype = dtype_of(x),
                             .mode = mode,
                             .B = images.count(),
                             .S = 0,
                             .k = 0,
                             .m = 0,
                             .C = channels_of(x, 1),
                             .all_rows = images.rows()};
  return backward ? run_merge(op, x, assignment, problem, images.sequences(), 0, images.tokens(), launch_merge_backward)
                  : run_merge(op, x, assignment, problem, images.sequences(), 0, images.rows(), launch_merge);
}

// One launch, after that of placing, where hidden has the keys' dtype and the fused kernel has room for the images;
// otherwise the decision first and then the merge.
ZipResult zip_packed(const Tensor& hidden, const Tensor& keys, const Tensor& cu_seqlens, const Numbers& k,
                     const Numbers& m, const OptionalTensor& queries, const OptionalTensor& scores,
                     std::optional<double> scale, const OptionalTensor& lse, std::optional<int64_t> max_seqlen,
                     int64_t group, bool has_cls, const std::string& merge, const std::string& policy, bool keep_cls) {
  const char* op = "zip_packed";
  const MergeMode mode = parse_merge(op, merge);
  const SelectionRule rule = parse_rule(op, has_cls, policy, keep_cls);
  PackedArguments arguments{keys, cu_seqlens, k, m, queries, scores, scale, lse, max_seqlen, group, rule};
  check_zip_packed(hidden, arguments);
  const int32_t device = device_of(keys);
  const DeviceGuard guard(device);
  const PackedCall call = describe(op, std::move(arguments));
  const Tensor flat = unit_stride(hidden);
  if (can_merge_in_kernel(call.zip, flat)) {
    const Tensor tokens = torch::stable::new_empty(hidden, with_size(hidden, 0, call.images.rows()));
    const ZipCall whole = bounded(with_hidden(call.zip, flat, tokens, mode), call);
    if (const ZipPlan plan = plan_call(whole, device); plan.path != Path::kGlobal) {
      place_and_launch(call, whole, plan, device);
      return {tokens, call.zip.indices, call.zip.assignment, call.row_starts};
    }
  }
  const Decision decision = decide(call, device);
  const Tensor tokens = merge_placed(op, flat, std::get<1>(decision), call.images, mode, false);
  return std::tuple_cat(std::tuple(tokens), decision);
}

Decision select_packed(const Tensor& keys, const Tensor& cu_seqlens, const Numbers& k, const Numbers& m,
                       const OptionalTensor& queries, const OptionalTensor& scores, std::optional<double> scale,
                       const OptionalTensor& lse, std::optional<int64_t> max_seqlen, int64_t group, bool has_cls,
                       const std::string& policy, bool keep_cls) {
  const char* op = "select_packed";
  const SelectionRule rule = parse_rule(op, has_cls, policy, keep_cls);
  PackedArguments arguments{keys, cu_seqlens, k, m, queries, scores, scale, lse, max_seqlen, group, rule};
  check_select_packed(arguments);
  const int32_t device = device_of(keys);
  const DeviceGuard guard(device);
  return decide(describe(op, std::move(arguments)), device);
}

Tensor place_and_merge(const char* op, const Tensor& x, const Tensor& assignment, const Tensor& cu_seqlens,
                       const Numbers& k, const Numbers& m, MergeMode mode, bool backward) {
  const int32_t device = device_of(x);
  const DeviceGuard guard(device);
  const Images images(op, cu_seqlens, assignment.size(0), k, m);
  images.place(images.tokens(), 0, nullptr, device);
  return merge_placed(op, x, assignment, images, mode, backward);
}

Tensor merge_packed(const Tensor& x, const Tensor& assignment, const Tensor& cu_seqlens, const Numbers& k,
                    const Numbers& m, const std::string& merge) {
  const char* op = "merge_packed";
  const MergeMode mode = parse_merge(op, merge);
  Numbers each_k = k, each_m = m;
  check_merge_packed(x, assignment, cu_seqlens, each_k, each_m);
  return place_and_merge(op, x, assignment, cu_seqlens, each_k, each_m, mode, false);
}

Tensor merge_packed_backward(const Tensor& grad, const Tensor& assignment, const Tensor& cu_seqlens, const Numbers& k,
                             const Numbers& m, const std::string& merge) {
  const char* op = "merge_packed_backward";
  const MergeMode mode = parse_merge(op, merge);
  Numbers each_k = k, each_m = m;
  check_merge_packed_backward(grad, assignment, cu_seqlens, each_k, each_m);
  return place_and_merge(op, grad, assignment, cu_seqlens, each_k, each_m, mode, true);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(VISIONZIP_LIBRARY, VISIONZIP_CUDA_KEY, m) {
  m.impl("zip_packed", TORCH_BOX(&zip_packed));
  m.impl("select_packed", TORCH_BOX(&select_packed));
  m.impl("merge_packed", TORCH_BOX(&merge_packed));
  m.impl("merge_packed_backward", TORCH_BOX(&merge_packed_backward));
}

}  // namespace visionzip::cuda
