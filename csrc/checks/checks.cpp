#include "checks/checks.h"

#include "checks/argument_checks.h"

namespace visionzip {

namespace {

using torch::headeronly::ScalarType;

constexpr Rank kHidden{3, "(B, S, C)"};

void check_budget(const char* op, int64_t k, int64_t m, int64_t tokens, bool has_cls) {
  const int64_t least = has_cls ? 1 : 0;
  // k <= tokens before the sum, which could overflow.
  if (k >= least && m >= 0 && k <= tokens && m <= tokens && k + m >= 1 && k + m <= tokens) return;
  fail(op, "k = " + std::to_string(k) + " and m = " + std::to_string(m) + " do not fit S = " + std::to_string(tokens) +
               " tokens; expected k >= " + std::to_string(least) +
               ", m >= 0 and 1 <= k + m <= " + std::to_string(tokens) + (has_cls ? " (CLS is one of the k)" : ""));
}

void check_keys(const char* op, const Named& keys, const Named& base, int64_t B, int64_t S) {
  if (keys.tensor.dim() == 3) {
    check_fits(op, keys, base, {B, S, "D"});
  } else {
    check_fits(op, keys, base, {B, "H", S, "D"});
  }
}

void check_attn(const char* op, const Named& attn, const Named& base, int64_t B, int64_t S) {
  switch (attn.tensor.dim()) {
    case 2:
      return check_fits(op, attn, base, {B, S});
    case 3:
      return check_fits(op, attn, base, {B, "H", S});
    default:
      return check_fits(op, attn, base, {B, "H", S, S});
  }
}

void check_keys_rank(const char* op, const Named& keys) {
  check_rank(op, keys, {{3, "(B, S, D)"}, {4, "(B, H, S, D)"}});
}

void check_attn_rank(const char* op, const Named& attn) {
  check_rank(op, attn, {{2, "(B, S)"}, {3, "(B, H, S)"}, {4, "(B, H, S, S)"}});
}

// hidden: null for the operator that decides alone.
void check_qk(const char* op, const Tensor* hidden, const Tensor& queries, const Tensor& keys, int64_t k, int64_t m,
              bool has_cls, const std::optional<Tensor>& lse) {
  const Named q{"queries", queries}, key{"keys", keys}, first = hidden ? Named{"hidden", *hidden} : q;
  if (hidden) check_rank(op, first, {kHidden});
  check_rank(op, q, {{4, "(B, H, S, D)"}});
  check_rank(op, key, {{4, "(B, H, S, D)"}});
  if (lse) check_rank(op, {"lse", *lse}, {{3, "(B, H, S)"}});
  check_floating(op, {first, q, key});
  if (lse) check_dtype(op, {"lse", *lse}, {ScalarType::Float});
  check_same_device(op, first, {q, key});
  if (lse) check_same_device(op, first, {{"lse", *lse}});
  const int64_t B = first.tensor.size(0), S = hidden ? hidden->size(1) : queries.size(2);
  check_fits(op, q, first, {B, "H", S, "D"});
  check_fits(op, key, q, {queries.size(0), queries.size(1), queries.size(2), queries.size(3)});
  if (lse) check_fits(op, {"lse", *lse}, q, {queries.size(0), queries.size(1), queries.size(2)});
  check_budget(op, k, m, S, has_cls);
}

void check_carried(const char* op, const Named& x, const Named& assignment) {
  if (x.tensor.dim() < 2) {
    fail(op, std::string(x.name) + " has shape " + shape_of(x.tensor) + "; expected (B, S, *)");
  }
  check_rank(op, assignment, {{2, "(B, S)"}});
  check_floating(op, {x});
  check_dtype(op, assignment, {ScalarType::Long});
  check_same_device(op, x, {assignment});
}

}  // namespace

DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      return DType::kBFloat16;
  }
}

MergeMode parse_merge(const char* op, const std::string& word) {
  if (word == "residual") return MergeMode::kResidual;
  if (word == "mean") return MergeMode::kMean;
  fail(op, "merge is \"" + word + "\"; expected \"residual\" or \"mean\"");
}

void check_zip(const Tensor& hidden, const Tensor& keys, const Tensor& attn, int64_t k, int64_t m, bool has_cls) {
  const char* op = "zip";
  const Named h{"hidden", hidden}, key{"keys", keys}, a{"attn", attn};
  check_rank(op, h, {kHidden});
  check_keys_rank(op, key);
  check_attn_rank(op, a);
  check_floating(op, {h, key, a});
  check_same_device(op, h, {key, a});
  check_keys(op, key, h, hidden.size(0), hidden.size(1));
  check_attn(op, a, h, hidden.size(0), hidden.size(1));
  check_budget(op, k, m, hidden.size(1), has_cls);
}

void check_select(const Tensor& keys, const Tensor& attn, int64_t k, int64_t m, bool has_cls) {
  const char* op = "select";
  const Named key{"keys", keys}, a{"attn", attn};
  check_keys_rank(op, key);
  check_attn_rank(op, a);
  check_floating(op, {key, a});
  check_same_device(op, key, {a});
  const int64_t B = keys.size(0), S = keys.size(keys.dim() - 2);
  check_keys(op, key, key, B, S);
  check_attn(op, a, key, B, S);
  check_budget(op, k, m, S, has_cls);
}

void check_zip_qk(const Tensor& hidden, const Tensor& queries, const Tensor& keys, int64_t k, int64_t m, bool has_cls,
                  const std::optional<Tensor>& lse) {
  check_qk("zip_qk", &hidden, queries, keys, k, m, has_cls, lse);
}

void check_select_qk(const Tensor& queries, const Tensor& keys, int64_t k, int64_t m, bool has_cls,
                     const std::optional<Tensor>& lse) {
  check_qk("select_qk", nullptr, queries, keys, k, m, has_cls, lse);
}

void check_merge(const Tensor& x, const Tensor& assignment, int64_t k, int64_t m) {
  const char* op = "merge";
  const Named carried{"x", x}, a{"assignment", assignment};
  check_carried(op, carried, a);
  check_fits(op, a, carried, {x.size(0), x.size(1)});
  check_budget(op, k, m, assignment.size(1), false);
}

void check_merge_backward(const Tensor& grad, const Tensor& assignment, int64_t k, int64_t m) {
  const char* op = "merge_backward";
  const Named carried{"grad", grad}, a{"assignment", assignment};
  check_carried(op, carried, a);
  check_budget(op, k, m, assignment.size(1), false);
  std::vector<Size> expected{assignment.size(0), k + m};
  for (int64_t d = 2; d < grad.dim(); d++) expected.emplace_back(grad.size(d));
  check_fits(op, carried, a, expected);
}

}  // namespace visionzip
