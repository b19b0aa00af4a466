// The operators on packed images of CUDA tensors: checks -> parameters -> plan -> launch.
//
// A small kernel works out where each image lies; then come the launches that a batch has.  The host never reads
// cu_seqlens, with one exception: where max_seqlen is not given and the kernels have no room for one image of all
// tokens.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <functional>
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
#include "cuda/torch/fused_call.h"
#include "cuda/torch/merge_call.h"

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

  // longest: a bound that the GPU holds every image to.
  void place(int64_t longest, const Tensor* row_starts, int32_t device) const {
    const Packing packing{starts_.const_data_ptr<int32_t>(), static_cast<int32_t>(count()),
                          static_cast<int32_t>(tokens_), static_cast<int32_t>(longest)};
    const PlacedSequences placed{sequences(), order(), row_starts ? row_starts->mutable_data_ptr<int32_t>() : nullptr};
    check_launch(op_, launch_place(packing, k_, m_, placed, current_stream(device)), device);
  }

  // By reading cu_seqlens, which waits for the GPU.
  int64_t read_longest(int32_t device) const {
    Numbers lengths(k_.size());
    std::vector<int32_t> starts(k_.size() + 1);
    const cudaStream_t stream = current_stream(device);
    check_launch(op_,
                 cudaMemcpyAsync(starts.data(), starts_.const_data_ptr(), starts.size() * sizeof(int32_t),
                                 cudaMemcpyDeviceToHost, stream),
                 device);
    check_launch(op_, cudaStreamSynchronize(stream), device);
    std::transform(starts.begin() + 1, starts.end(), starts.begin(), lengths.begin(), std::minus<int64_t>());
    return std::clamp<int64_t>(most_of(lengths), 0, tokens_);
  }

 private:
  const char* op_;
  Tensor starts_, places_;
  int64_t tokens_;
  Numbers k_, m_;
};

// A call, and what it gives.
struct PackedCall {
  PackedArguments arguments;
  Images images;
  FusedCall fused;
  Tensor indices, assignment, row_starts;
};

void take_queries(FusedCall& call, const PackedArguments& a) {
  ZipParams& p = call.params;
  const Tensor& queries = call.queries.emplace(in_common_dtype(*a.queries, a.keys));
  p.queries = queries.const_data_ptr();
  p.query_image = queries.stride(0);
  p.query_head = queries.stride(1);
  p.scale = static_cast<float>(*a.scale);
  if (a.lse) {
    const Tensor& lse = call.lse.emplace(unit_stride(*a.lse));
    p.lse = lse.const_data_ptr<float>();
    p.lse_image = 1;
    p.lse_head = lse.stride(0);
  }
  if (!a.has_cls) describe_column_sums(call, queries.stride(0));
}

void take_scores(FusedCall& call, const PackedArguments& a) {
  const Tensor& scores = call.attn.emplace(unit_stride(*a.scores));
  ZipParams& p = call.params;
  p.attn = scores.const_data_ptr();
  p.attn_dtype = dtype_of(scores);
  p.attn_image = p.group;
  p.attn_heads = p.attn_rows = 1;
}

FusedCall describe_fused(const char* op, const PackedArguments& a, const Images& images) {
  FusedCall call{op, a.queries ? in_common_dtype(a.keys, *a.queries) : unit_stride(a.keys)};
  call.has_cls = a.has_cls;
  const bool has_heads = a.keys.dim() == 3;
  ZipParams& p = call.params;
  p.keys = call.keys.const_data_ptr();
  p.key_head = has_heads ? call.keys.stride(1) : 0;
  p.key_token = call.keys.stride(0);
  p.key_image = p.key_token * a.group;
  p.sequences = images.sequences();
  p.order = images.order();
  p.images = images.count();
  p.all_tokens = images.tokens();
  p.group = static_cast<int32_t>(a.group);
  p.H = static_cast<int32_t>(has_heads ? a.keys.size(1) : 1);
  p.D = static_cast<int32_t>(a.keys.size(a.keys.dim() - 1));
  p.k = most_of(images.k());
  p.m = most_of(images.m());
  p.has_cls = a.has_cls;
  p.wide_keys = is_wide(call.keys);
  if (a.queries) {
    take_queries(call, a);
  } else {
    take_scores(call, a);
  }
  return call;
}

PackedCall describe(const char* op, PackedArguments&& a) {
  const int64_t tokens = a.keys.size(0) / a.group;
  Images images(op, a.cu_seqlens, tokens, a.k, a.m);
  FusedCall fused = describe_fused(op, a, images);
  const auto new_tensor = [&](int64_t size, ScalarType dtype) {
    return torch::stable::new_empty(a.keys, {size}, dtype);
  };
  Tensor indices = new_tensor(images.kept(), ScalarType::Long), assignment = new_tensor(tokens, ScalarType::Long),
         row_starts = new_tensor(images.count() + 1, ScalarType::Int);
  fused.params.indices = indices.mutable_data_ptr<int64_t>();
  fused.params.assignment = assignment.mutable_data_ptr<int64_t>();
  return {std::move(a), std::move(images), std::move(fused), indices, assignment, row_starts};
}

std::optional<FusedPlan> plan_for(FusedCall& call, int64_t longest, const Gpu& gpu) {
  call.params.S = static_cast<int32_t>(longest);
  return plan_fused(call, gpu);
}

// False where no plan fits.
bool launch(PackedCall& call, int32_t device) {
  const Gpu gpu = current_gpu(call.fused.op, device);
  const int64_t tokens = call.images.tokens();
  int64_t longest = std::min(call.arguments.max_seqlen.value_or(tokens), tokens);
  std::optional<FusedPlan> plan = plan_for(call.fused, longest, gpu);
  if (!plan && !call.arguments.max_seqlen) {
    longest = call.images.read_longest(device);
    plan = plan_for(call.fused, longest, gpu);
  }
  if (!plan) return false;
  call.images.place(longest, &call.row_starts, device);
  if (tokens > 0) launch_fused(call.fused, *plan, device);
  return true;
}

Decision decide_by_reference(const PackedCall& call) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  const PackedArguments& a = call.arguments;
  std::vector<StableIValue> stack{from(a.keys),       from(a.cu_seqlens), from(a.k),      from(a.m),
                                  from(a.queries),    from(a.scores),     from(a.scale),  from(a.lse),
                                  from(a.max_seqlen), from(a.group),      from(a.has_cls)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("visionzip::_select_packed_reference", "", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1]), to<Tensor>(stack[2])};
}

// Afterwards the images are placed, as a merge needs them to be, whoever decided.
Decision decide(PackedCall& call, int32_t device) {
  if (launch(call, device)) return {call.indices, call.assignment, call.row_starts};
  call.images.place(call.images.tokens(), nullptr, device);
  return decide_by_reference(call);
}

// For images that are placed.
MergeParams merge_params(const Images& images, MergeMode mode) {
  MergeParams p{};
  p.B = images.count();
  p.sequences = images.sequences();
  p.all_rows = images.rows();
  p.mode = mode;
  return p;
}

// One launch, after that of placing, where hidden has the keys' dtype; otherwise, and where no plan fits, the decision
// first and then the merge.
ZipResult zip_packed(const Tensor& hidden, const Tensor& keys, const Tensor& cu_seqlens, const Numbers& k,
                     const Numbers& m, const OptionalTensor& queries, const OptionalTensor& scores,
                     std::optional<double> scale, const OptionalTensor& lse, std::optional<int64_t> max_seqlen,
                     int64_t group, bool has_cls, const std::string& merge) {
  const char* op = "zip_packed";
  const MergeMode mode = parse_merge(op, merge);
  PackedArguments arguments{keys, cu_seqlens, k, m, queries, scores, scale, lse, max_seqlen, group, has_cls};
  check_zip_packed(hidden, arguments);
  const int32_t device = device_of(keys);
  const DeviceGuard guard(device);
  PackedCall call = describe(op, std::move(arguments));
  const Tensor flat = unit_stride(hidden);
  ZipParams& p = call.fused.params;
  if (dtype_of(hidden) == dtype_of(call.fused.keys) && is_wide(flat)) {
    p.C = static_cast<int32_t>(hidden.size(1));
    p.mode = mode;
    p.hidden = flat.const_data_ptr();
    p.hidden_image = p.hidden_token = flat.stride(0);
    const Tensor tokens = torch::stable::new_empty(hidden, {call.images.rows(), p.C});
    p.tokens = tokens.mutable_data_ptr();
    if (launch(call, device)) return {tokens, call.indices, call.assignment, call.row_starts};
    p.hidden = nullptr;
  }
  const Decision decision = decide(call, device);
  const Tensor& assignment = std::get<1>(decision);
  const MergeParams params = merge_params(call.images, mode);
  const Tensor tokens = carry(op, flat, assignment, params, 0, params.all_rows, launch_merge);
  return std::tuple_cat(std::tuple(tokens), decision);
}

Decision select_packed(const Tensor& keys, const Tensor& cu_seqlens, const Numbers& k, const Numbers& m,
                       const OptionalTensor& queries, const OptionalTensor& scores, std::optional<double> scale,
                       const OptionalTensor& lse, std::optional<int64_t> max_seqlen, int64_t group, bool has_cls) {
  PackedArguments arguments{keys, cu_seqlens, k, m, queries, scores, scale, lse, max_seqlen, group, has_cls};
  check_select_packed(arguments);
  const int32_t device = device_of(keys);
  const DeviceGuard guard(device);
  PackedCall call = describe("select_packed", std::move(arguments));
  return decide(call, device);
}

// Places the images of a decision, and carries it out on x, or its adjoint.
Tensor carry_placed(const char* op, const Tensor& x, const Tensor& assignment, const Tensor& cu_seqlens,
                    const Numbers& k, const Numbers& m, MergeMode mode, bool backward) {
  const int32_t device = device_of(x);
  const DeviceGuard guard(device);
  const Images images(op, cu_seqlens, assignment.size(0), k, m);
  images.place(images.tokens(), nullptr, device);
  const MergeParams params = merge_params(images, mode);
  return backward ? carry(op, x, assignment, params, 0, images.tokens(), launch_merge_backward)
                  : carry(op, x, assignment, params, 0, params.all_rows, launch_merge);
}

Tensor merge_packed(const Tensor& x, const Tensor& assignment, const Tensor& cu_seqlens, const Numbers& k,
                    const Numbers& m, const std::string& merge) {
  const char* op = "merge_packed";
  const MergeMode mode = parse_merge(op, merge);
  Numbers each_k = k, each_m = m;
  check_merge_packed(x, assignment, cu_seqlens, each_k, each_m);
  return carry_placed(op, x, assignment, cu_seqlens, each_k, each_m, mode, false);
}

Tensor merge_packed_backward(const Tensor& grad, const Tensor& assignment, const Tensor& cu_seqlens, const Numbers& k,
                             const Numbers& m, const std::string& merge) {
  const char* op = "merge_packed_backward";
  const MergeMode mode = parse_merge(op, merge);
  Numbers each_k = k, each_m = m;
  check_merge_packed_backward(grad, assignment, cu_seqlens, each_k, each_m);
  return carry_placed(op, grad, assignment, cu_seqlens, each_k, each_m, mode, true);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(VISIONZIP_LIBRARY, VISIONZIP_CUDA_KEY, m) {
  m.impl("zip_packed", TORCH_BOX(&zip_packed));
  m.impl("select_packed", TORCH_BOX(&select_packed));
  m.impl("merge_packed", TORCH_BOX(&merge_packed));
  m.impl("merge_packed_backward", TORCH_BOX(&merge_packed_backward));
}

}  // namespace visionzip::cuda
