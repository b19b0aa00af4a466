#include "checks/packed_checks.h"

#include <algorithm>

#include "checks/argument_checks.h"
#include "checks/checks.h"

namespace visionzip {

namespace {

constexpr int64_t kMostGroup = 1 << 16;  // so that the number of cells does not overflow

std::string number(int64_t x) { return std::to_string(x); }

// Exactly one source of scores, and what belongs to it.
void check_sources(const char* op, const PackedInfo& a) {
  if (a.queries && a.scores) fail(op, "queries and scores are both given; expected one of them");
  if (!a.queries && !a.scores) fail(op, "neither queries nor scores is given; expected one of them");
  if (a.scores && a.scale) fail(op, "scale is given with scores; expected it with queries only");
  if (a.scores && a.lse) fail(op, "lse is given with scores; expected it with queries only");
}

void check_group(const char* op, int64_t group, bool has_cls) {
  if (group < 1 || group > kMostGroup) {
    fail(op, "group is " + number(group) + "; expected 1 to " + number(kMostGroup));
  }
  if (has_cls && group > 1) {
    fail(op, "group is " + number(group) + " and has_cls is true; expected group = 1 where token 0 is CLS");
  }
}

void check_layouts(const char* op, const TensorInfo* hidden, const PackedInfo& a) {
  if (hidden) check_strided(op, {{"hidden", *hidden}});
  check_strided(op, {{"keys", a.keys}, {"cu_seqlens", a.cu_seqlens}});
  if (a.queries) check_strided(op, {{"queries", *a.queries}});
  if (a.scores) check_strided(op, {{"scores", *a.scores}});
  if (a.lse) check_strided(op, {{"lse", *a.lse}});
}

void check_ranks(const char* op, const TensorInfo* hidden, const PackedInfo& a) {
  if (hidden) check_rank(op, {"hidden", *hidden}, {{2, "(T, C)"}});
  if (a.queries) {
    constexpr const char* kSplitHeads = "unflatten(1, (H, D)) of (T, H * D)";
    check_rank(op, {"keys", a.keys}, {{3, "(T, H, D)"}}, kSplitHeads);
    check_rank(op, {"queries", *a.queries}, {{3, "(T, H, D)"}}, kSplitHeads);
  } else {
    check_rank(op, {"keys", a.keys}, {{2, "(T, D)"}, {3, "(T, H, D)"}});
    check_rank(op, {"scores", *a.scores}, {{1, "(T)"}});
  }
  if (a.lse) check_rank(op, {"lse", *a.lse}, {{2, "(H, T)"}});
  check_rank(op, {"cu_seqlens", a.cu_seqlens}, {{1, "(n + 1)"}});
}

void check_cu_seqlens_dtype(const char* op, const TensorInfo& cu_seqlens) {
  if (cu_seqlens.dtype == "int64") {  // which cumsum makes
    fail(op, "cu_seqlens has dtype int64; expected int32: cu_seqlens.int(), as the functions of visionzip_ext do");
  }
  check_dtype(op, {"cu_seqlens", cu_seqlens}, {"int32"});
}

void check_dtypes(const char* op, const TensorInfo* hidden, const PackedInfo& a) {
  if (hidden) check_floating(op, {{"hidden", *hidden}});
  check_floating(op, {{"keys", a.keys}});
  if (a.queries) check_floating(op, {{"queries", *a.queries}});
  if (a.scores) check_floating(op, {{"scores", *a.scores}});
  if (a.lse) check_dtype(op, {"lse", *a.lse}, {"float32"});
  check_cu_seqlens_dtype(op, a.cu_seqlens);
}

void check_devices(const char* op, const TensorInfo* hidden, const PackedInfo& a) {
  const Named first = hidden ? Named{"hidden", *hidden} : Named{"keys", a.keys};
  check_same_device(op, first, {{"keys", a.keys}});
  if (a.queries) check_same_device(op, first, {{"queries", *a.queries}});
  if (a.scores) check_same_device(op, first, {{"scores", *a.scores}});
  if (a.lse) check_same_device(op, first, {{"lse", *a.lse}});
  check_same_device(op, first, {{"cu_seqlens", a.cu_seqlens}});
}

// Keys have one row a cell; queries, scores and lse are as the keys.
void check_sizes(const char* op, const Named& base, const PackedInfo& a, int64_t T) {
  const int64_t cells = T * a.group;
  const std::string grouped = a.group > 1 ? " with group = " + number(a.group) : "";
  const Named keys{"keys", a.keys};
  if (a.keys.dim() == 2) {
    check_fits(op, keys, base, {cells, "D"}, 0, grouped);
  } else {
    check_fits(op, keys, base, {cells, "H", "D"}, 0, grouped);
  }
  const TensorInfo& k = a.keys;
  if (a.queries) check_fits(op, {"queries", *a.queries}, keys, {k.size(0), k.size(1), k.size(2)}, 0);
  if (a.scores) check_fits(op, {"scores", *a.scores}, keys, {k.size(0)});
  if (a.lse) check_fits(op, {"lse", *a.lse}, keys, {k.size(1), k.size(0)}, 0);
}

int64_t count_sequences(const char* op, const TensorInfo& cu_seqlens) {
  if (cu_seqlens.size(0) == 0) fail(op, "cu_seqlens has shape (0); expected (n + 1)");
  return cu_seqlens.size(0) - 1;
}

void check_numbers(const char* op, const char* name, const std::vector<int64_t>& numbers, int64_t n) {
  const auto given = static_cast<int64_t>(numbers.size());
  if (given != 1 && given != n) {
    fail(op, std::string(name) + " has " + number(given) + " numbers for " + number(n) +
                 " sequences; expected one for all, or one for each");
  }
  for (int64_t i = 0; i < given; i++) {
    const int64_t value = numbers[static_cast<size_t>(i)];
    if (value >= 0) continue;
    fail(op, std::string(name) + "[" + number(i) + "] is " + number(value) + "; expected at least 0");
  }
}

void check_cls_is_kept(const char* op, const std::vector<int64_t>& k, const std::vector<int64_t>& m) {
  const size_t given = k.empty() || m.empty() ? 0 : std::max(k.size(), m.size());
  for (size_t i = 0; i < given; i++) {
    const int64_t kept = k[k.size() == 1 ? 0 : i], merged = m[m.size() == 1 ? 0 : i];
    if (kept > 0 || merged == 0) continue;
    fail(op, "sequence " + number(static_cast<int64_t>(i)) + ": k = 0 and m = " + number(merged) +
                 "; expected k >= 1 (CLS is one of the k), or k = m = 0");
  }
}

void one_for_each(std::vector<int64_t>& numbers, int64_t n) {
  if (numbers.size() != 1) return;
  const int64_t value = numbers[0];
  numbers.assign(static_cast<size_t>(n), value);
}

// What can be said of budgets without knowing where sequences begin and end.
void check_budgets(const char* op, std::vector<int64_t>& k, std::vector<int64_t>& m, int64_t n, int64_t T,
                   bool keeps_cls) {
  check_numbers(op, "k", k, n);
  check_numbers(op, "m", m, n);
  if (keeps_cls) check_cls_is_kept(op, k, m);
  one_for_each(k, n);
  one_for_each(m, n);
  int64_t left = T;  // taken away from instead of added up: a sum could overflow
  for (size_t i = 0; i < k.size(); i++) {
    const bool fits = k[i] <= left && m[i] <= left - k[i];
    if (!fits) fail(op, "k and m add up to more than T = " + number(T) + " tokens");
    left -= k[i] + m[i];
  }
}

void check_packed(const char* op, const TensorInfo* hidden, PackedInfo& a) {
  check_group(op, a.group, a.rule.has_cls);
  check_sources(op, a);
  check_layouts(op, hidden, a);
  check_ranks(op, hidden, a);
  check_dtypes(op, hidden, a);
  check_devices(op, hidden, a);
  if (!hidden && a.keys.size(0) % a.group != 0) {
    fail(op, "keys has shape " + shape_of(a.keys) + "; expected a multiple of group = " + number(a.group) + " rows");
  }
  const int64_t T = hidden ? hidden->size(0) : a.keys.size(0) / a.group;
  check_sizes(op, hidden ? Named{"hidden", *hidden} : Named{"keys", a.keys}, a, T);
  if (a.max_seqlen && *a.max_seqlen < 0) fail(op, "max_seqlen is " + number(*a.max_seqlen) + "; expected at least 0");
  check_budgets(op, a.k, a.m, count_sequences(op, a.cu_seqlens), T, a.rule.has_cls && a.rule.keep_cls);
  if (a.queries) a.scale = scale_or_default(a.scale, a.queries->size(2));
}

void check_merged(const char* op, const Named& x, const Named& assignment, const TensorInfo& cu_seqlens) {
  const Named cu{"cu_seqlens", cu_seqlens};
  check_strided(op, {x, assignment, cu});
  if (x.tensor.dim() < 1) fail(op, std::string(x.name) + " has shape (); expected (T, *)");
  check_rank(op, assignment, {{1, "(T)"}});
  check_rank(op, cu, {{1, "(n + 1)"}});
  check_floating(op, {x});
  check_dtype(op, assignment, {"int64"});
  check_cu_seqlens_dtype(op, cu_seqlens);
  check_same_device(op, x, {assignment, cu});
}

}  // namespace

void check_select_packed(PackedInfo& arguments) { check_packed("select_packed", nullptr, arguments); }

void check_zip_packed(const TensorInfo& hidden, PackedInfo& arguments) {
  check_packed("zip_packed", &hidden, arguments);
}

void check_merge_packed(const TensorInfo& x, const TensorInfo& assignment, const TensorInfo& cu_seqlens,
                        std::vector<int64_t>& k, std::vector<int64_t>& m) {
  const char* op = "merge_packed";
  const Named merged{"x", x}, a{"assignment", assignment};
  check_merged(op, merged, a, cu_seqlens);
  check_fits(op, a, merged, {x.size(0)});
  check_budgets(op, k, m, count_sequences(op, cu_seqlens), x.size(0), false);
}

void check_merge_packed_backward(const TensorInfo& grad, const TensorInfo& assignment, const TensorInfo& cu_seqlens,
                                 std::vector<int64_t>& k, std::vector<int64_t>& m) {
  const char* op = "merge_packed_backward";
  check_merged(op, {"grad", grad}, {"assignment", assignment}, cu_seqlens);
  check_budgets(op, k, m, count_sequences(op, cu_seqlens), assignment.size(0), false);
  int64_t rows = 0;
  for (size_t i = 0; i < k.size(); i++) rows += k[i] + m[i];
  if (grad.size(0) == rows) return;
  fail(op, "grad has shape " + shape_of(grad) + "; expected " + number(rows) + " rows, the k + m of all sequences");
}

void check_sequences(const char* op, const int32_t* cu_seqlens, int64_t T, const std::vector<int64_t>& k,
                     const std::vector<int64_t>& m, std::optional<int64_t> max_seqlen, bool keep_cls) {
  const auto n = static_cast<int64_t>(k.size());
  if (cu_seqlens[0] != 0) fail(op, "cu_seqlens[0] is " + number(cu_seqlens[0]) + "; expected 0");
  for (int64_t i = 0; i < n; i++) {
    const int64_t S = int64_t{cu_seqlens[i + 1]} - cu_seqlens[i];
    const int64_t kept = k[static_cast<size_t>(i)], merged = m[static_cast<size_t>(i)];
    if (S < 0) {
      fail(op, "cu_seqlens[" + number(i + 1) + "] is " + number(cu_seqlens[i + 1]) + " after " + number(cu_seqlens[i]) +
                   "; expected numbers that never fall");
    }
    if (max_seqlen && S > *max_seqlen) {
      fail(op, "sequence " + number(i) + " has " + number(S) +
                   " tokens; expected at most max_seqlen = " + number(*max_seqlen));
    }
    const int64_t most = keep_cls || S == 0 ? S : S - 1;
    if (kept > most || merged > most - kept) {
      fail(op, "sequence " + number(i) + ": k = " + number(kept) + " and m = " + number(merged) + " do not fit S = " +
                   number(S) + " tokens; expected k + m <= " + number(most) + (keep_cls ? "" : " (CLS takes no row)"));
    }
  }
  if (cu_seqlens[n] != T) {
    fail(op, "cu_seqlens[" + number(n) + "] is " + number(cu_seqlens[n]) + "; expected T = " + number(T));
  }
}

}  // namespace visionzip
