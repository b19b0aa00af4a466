#include "cuda/plan/global_plan.h"

#include <algorithm>

#include "common/rounding.h"

namespace visionzip::cuda {

namespace {

// Hands out pieces of memory, each aligned to what vectors of 16 bytes and whole cache lines want.
class Pieces {
 public:
  int64_t take(int64_t bytes) {
    const int64_t piece = end_;
    end_ += round_up(bytes, 128);
    return piece;
  }
  int64_t end() const { return end_; }

 private:
  int64_t end_ = 0;
};

// Of all images, each of which has at most so many.
int64_t most_of_all(const ZipProblem& p, int64_t of_image) { return std::min(p.images * of_image, p.all_tokens); }

// What a slice keeps from one launch to the next; returns how many bytes that is.
int64_t lay_out_record(const ZipProblem& p, SharedLayout& at, int64_t Dp) {
  constexpr int64_t kMostChunks = kSliceTokens / chunk_tokens(1);
  const bool from_queries = scores_in_kernel(p);
  Pieces record;
  const auto place = [&](int64_t bytes) {
    return static_cast<int32_t>(std::min<int64_t>(record.take(bytes), INT32_MAX));
  };
  at.metric = place(4 * kSliceTokens * Dp);
  at.query = place(from_queries ? 4 * int64_t{p.H} * round_up(p.D, 8) : 0);
  at.logits = place(from_queries ? int64_t{4} * kSliceTokens * heads_pitch(p.H) : 0);
  at.softmax_stats = place(from_queries && !p.has_lse ? 8 * kMostChunks * p.H : 0);
  return record.end();
}

}  // namespace

int64_t count_slices(const ZipProblem& p) {
  if (p.packed) return p.all_tokens / kSliceTokens + p.images;
  return p.images * ceil_divide(p.S, kSliceTokens);
}

GlobalLayout make_global_layout(const ZipProblem& p, const ZipTiling& tiling) {
  SharedLayout unused{};
  GlobalLayout lies{};
  Pieces scratch;
  const int64_t targets = most_of_all(p, p.m);
  const bool averages = !scores_in_kernel(p) && attention_rows(p) > 1;
  lies.record_bytes = lay_out_record(p, unused, tiling.Dp);
  lies.records = scratch.take(count_slices(p) * lies.record_bytes);
  lies.column_sums = scratch.take(averages ? 4 * p.attn_heads * p.all_tokens : 0);
  lies.head_stats = scratch.take(scores_in_kernel(p) ? 8 * p.images * p.H : 0);
  lies.scores = scratch.take(4 * p.all_tokens);
  const int64_t distinct = p.policy == SelectionPolicy::kDistinct ? 1 : 0;
  lies.lengths = scratch.take(distinct * 4 * p.all_tokens);
  lies.resemblance = scratch.take(distinct * 4 * p.all_tokens);
  lies.taken_bytes = distinct * 8 * most_of_all(p, p.k);
  lies.taken = scratch.take(lies.taken_bytes);
  lies.targets = scratch.take(4 * targets);
  lies.target_metric = scratch.take(4 * targets * tiling.Dp);
  lies.rest = scratch.take(p.m > 0 ? 4 * p.all_tokens : 0);
  lies.total = scratch.end();
  return lies;
}

ZipPlan plan_global(const ZipProblem& p, const std::string& why) {
  ZipPlan plan{};
  plan.tiling.team_blocks = plan.tiling.teams = 1;
  plan.tiling.Dp = round_up(p.D, 4);
  if (lay_out_record(p, plan.tiling.at, plan.tiling.Dp) > INT32_MAX) {
    plan.why = "heads of " + std::to_string(p.D) + " channels are too large";
    return plan;
  }
  plan.path = Path::kGlobal;
  plan.blocks = static_cast<int32_t>(std::min<int64_t>(count_slices(p), INT32_MAX));
  plan.threads = kSliceThreads;
  plan.scratch_bytes = make_global_layout(p, plan.tiling).total;
  plan.why = "several launches over global memory: " + why;
  return plan;
}

}  // namespace visionzip::cuda
