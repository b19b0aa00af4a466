#include "checks/checks.h"

#include <algorithm>
#include <cmath>

#include "checks/argument_checks.h"

namespace visionzip {

namespace {

constexpr Rank kHidden{3, "(B, S, C)"};
constexpr Rank kHeads{4, "(B, H, S, D)"};
constexpr const char* kSplitHeads = "unflatten(2, (H, D)).transpose(1, 2) of (B, S, H * D)";

constexpr SelectionRule kNoCls{false, SelectionPolicy::kAttention, true};

void check_budget(const char* op, int64_t k, int64_t m, int64_t tokens, const SelectionRule& rule,
                  const char* hint = "") {
  const int64_t least = rule.has_cls && rule.keep_cls ? 1 : 0;
  const int64_t most = rule.keep_cls ? tokens : tokens - 1;
  // k <= most before the sum, which could overflow.
  if (k >= least && m >= 0 && k <= most && m <= most && k + m >= 1 && k + m <= most) return;
  const char* of_cls = !rule.has_cls ? "" : rule.keep_cls ? " (CLS is one of the k)" : " (CLS takes no row)";
  fail(op, "k = " + std::to_string(k) + " and m = " + std::to_string(m) + " do not fit S = " + std::to_string(tokens) +
               " tokens; expected k >= " + std::to_string(least) +
               ", m >= 0 and 1 <= k + m <= " + std::to_string(most) + of_cls + hint);
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

void check_keys_rank(const char* op, const Named& keys) { check_rank(op, keys, {{3, "(B, S, D)"}, kHeads}); }

void check_attn_rank(const char* op, const Named& attn) {
  check_rank(op, attn, {{2, "(B, S)"}, {3, "(B, H, S)"}, {4, "(B, H, S, S)"}});
}

// hidden: null for the operator that decides alone.
void check_qk(const char* op, const TensorInfo* hidden, const TensorInfo& queries, const TensorInfo& keys, int64_t k,
              int64_t m, const SelectionRule& rule, const std::optional<TensorInfo>& lse) {
  const Named q{"queries", queries}, key{"keys", keys}, first = hidden ? Named{"hidden", *hidden} : q;
  check_strided(op, {first, q, key});
  if (lse) check_strided(op, {{"lse", *lse}});
  if (hidden) check_rank(op, first, {kHidden});
  check_rank(op, q, {kHeads}, kSplitHeads);
  check_rank(op, key, {kHeads}, kSplitHeads);
  if (lse) check_rank(op, {"lse", *lse}, {{3, "(B, H, S)"}});
  check_floating(op, {first, q, key});
  if (lse) check_dtype(op, {"lse", *lse}, {"float32"});
  check_same_device(op, first, {q, key});
  if (lse) check_same_device(op, first, {{"lse", *lse}});
  const int64_t B = first.tensor.size(0), S = hidden ? hidden->size(1) : queries.size(2);
  check_fits(op, q, first, {B, "H", S, "D"});
  check_fits(op, key, q, {queries.size(0), queries.size(1), queries.size(2), queries.size(3)});
  if (lse) check_fits(op, {"lse", *lse}, q, {queries.size(0), queries.size(1), queries.size(2)});
  const bool maybe_swapped = !hidden && queries.size(1) > S;  // hidden would have shown it
  check_budget(op, k, m, S, rule,
               maybe_swapped ? ": queries and keys are (B, H, S, D); transpose(1, 2) makes them of (B, S, H, D)" : "");
}

void check_merged(const char* op, const Named& x, const Named& assignment) {
  check_strided(op, {x, assignment});
  if (x.tensor.dim() < 2) {
    fail(op, std::string(x.name) + " has shape " + shape_of(x.tensor) + "; expected (B, S, *)");
  }
  check_rank(op, assignment, {{2, "(B, S)"}});
  check_floating(op, {x});
  check_dtype(op, assignment, {"int64"});
  check_same_device(op, x, {assignment});
}

}  // namespace

MergeMode parse_merge(const char* op, const std::string& word) {
  if (word == "residual") return MergeMode::kResidual;
  if (word == "mean") return MergeMode::kMean;
  fail(op, "merge is \"" + word + "\"; expected \"residual\" or \"mean\"");
}

SelectionRule parse_rule(const char* op, bool has_cls, const std::string& policy, bool keep_cls) {
  if (policy != "attention" && policy != "distinct") {
    fail(op, "policy is \"" + policy + "\"; expected \"attention\" or \"distinct\"");
  }
  if (!keep_cls && !has_cls) {
    fail(op, "keep_cls is false and has_cls is false; expected keep_cls = true where no token is CLS");
  }
  return {has_cls, policy == "distinct" ? SelectionPolicy::kDistinct : SelectionPolicy::kAttention, keep_cls};
}

double scale_or_default(std::optional<double> scale, int64_t D) {
  return scale ? *scale : std::pow(static_cast<double>(std::max<int64_t>(D, 1)), -0.5);
}

void check_zip(const TensorInfo& hidden, const TensorInfo& keys, const TensorInfo& attn, int64_t k, int64_t m,
               const SelectionRule& rule) {
  const char* op = "zip";
  const Named h{"hidden", hidden}, key{"keys", keys}, a{"attn", attn};
  check_strided(op, {h, key, a});
  check_rank(op, h, {kHidden});
  check_keys_rank(op, key);
  check_attn_rank(op, a);
  check_floating(op, {h, key, a});
  check_same_device(op, h, {key, a});
  check_keys(op, key, h, hidden.size(0), hidden.size(1));
  check_attn(op, a, h, hidden.size(0), hidden.size(1));
  check_budget(op, k, m, hidden.size(1), rule);
}

void check_select(const TensorInfo& keys, const TensorInfo& attn, int64_t k, int64_t m, const SelectionRule& rule) {
  const char* op = "select";
  const Named key{"keys", keys}, a{"attn", attn};
  check_strided(op, {key, a});
  check_keys_rank(op, key);
  check_attn_rank(op, a);
  check_floating(op, {key, a});
  check_same_device(op, key, {a});
  const int64_t B = keys.size(0), S = keys.size(keys.dim() - 2);
  check_keys(op, key, key, B, S);
  check_attn(op, a, key, B, S);
  check_budget(op, k, m, S, rule);
}

void check_zip_qk(const TensorInfo& hidden, const TensorInfo& queries, const TensorInfo& keys, int64_t k, int64_t m,
                  const SelectionRule& rule, const std::optional<TensorInfo>& lse) {
  check_qk("zip_qk", &hidden, queries, keys, k, m, rule, lse);
}

void check_select_qk(const TensorInfo& queries, const TensorInfo& keys, int64_t k, int64_t m, const SelectionRule& rule,
                     const std::optional<TensorInfo>& lse) {
  check_qk("select_qk", nullptr, queries, keys, k, m, rule, lse);
}

void check_merge(const TensorInfo& x, const TensorInfo& assignment, int64_t k, int64_t m) {
  const char* op = "merge";
  const Named merged{"x", x}, a{"assignment", assignment};
  check_merged(op, merged, a);
  check_fits(op, a, merged, {x.size(0), x.size(1)});
  check_budget(op, k, m, assignment.size(1), kNoCls);
}

void check_merge_backward(const TensorInfo& grad, const TensorInfo& assignment, int64_t k, int64_t m) {
  const char* op = "merge_backward";
  const Named merged{"grad", grad}, a{"assignment", assignment};
  check_merged(op, merged, a);
  check_budget(op, k, m, assignment.size(1), kNoCls);
  check_fits(op, merged, a, {assignment.size(0), k + m});
}

}  // namespace visionzip
