#include "cuda/plan/zip_tiling.h"

#include <algorithm>

#include "cuda/plan/merge_params.h"

namespace visionzip::cuda {

namespace {

// Hands out aligned pieces of shared memory.
class BumpAllocator {
 public:
  explicit BumpAllocator(int32_t begin) : end_(begin) {}
  int32_t take(int64_t bytes) {
    const int32_t piece = end_;
    end_ = static_cast<int32_t>(std::min(end_ + round_up(bytes, 16), kTooMuch));
    return piece;
  }
  int32_t end() const { return end_; }

 private:
  static constexpr int64_t kTooMuch = 1 << 30;  // more than any GPU has: the plan sees that it does not fit
  int32_t end_;
};

int32_t vector_elements(const ZipProblem& p) { return 16 / static_cast<int32_t>(size_of(p.dtype)); }

// Of packed images a short one may have more chunks than a long one.
int64_t most_chunks(const ZipProblem& p) {
  return p.packed ? std::max(chunks_of(p.S), chunks_of(std::min(p.S, kShortImage))) : chunks_of(p.S);
}

// Of packed images any may have next to no rows.
int64_t most_merged(const ZipProblem& p) { return p.packed ? p.S : p.S - p.k - p.m; }

// What is needed until the assignments are shared: from the overlay on; returns where it ends.
int32_t lay_out_decision(const ZipProblem& p, const ZipTiling& tiling, SharedLayout& at) {
  const int64_t own = block_tokens_of(p.S, tiling.team_blocks), H = p.H;
  const bool from_queries = scores_in_kernel(p), sums_rows = !from_queries && attention_rows(p) > 1;
  BumpAllocator decision(at.overlay);
  at.metric = decision.take(4 * own * tiling.Dp);
  BumpAllocator scoring = decision, targets = decision, taking = decision;
  at.head_stats = scoring.take(from_queries ? 8 * H : 0);
  at.query = scoring.take(from_queries ? 4 * H * round_up(p.D, 8) : 0);
  at.logits = scoring.take(from_queries ? 4 * own * heads_pitch(p.H) : sums_rows ? 4 * own * p.attn_heads : 0);
  at.target_metric = targets.take(int64_t{4} * std::min(p.m, kTargetTile) * tiling.Dp);
  const int64_t distinct = p.policy == SelectionPolicy::kDistinct ? 1 : 0;
  at.lengths = taking.take(distinct * 4 * own);
  at.resemblance = taking.take(distinct * 4 * own);
  at.unit = taking.take(distinct * 4 * tiling.Dp);
  at.of_warps = taking.take(distinct * 8 * (kZipThreads / 32));
  return std::max({scoring.end(), targets.end(), taking.end()});
}

// What is needed then: from the overlay on, too; returns where it ends.
int32_t lay_out_merging(const ZipProblem& p, const ZipTiling& tiling, SharedLayout& at) {
  if (p.m == 0 || !p.has_hidden) return at.overlay;
  const int64_t merged = most_merged(p), m = p.m, segments = merged / kSegment + m;
  BumpAllocator merging(at.overlay);
  at.token_list = merging.take(2 * merged);
  at.first_of_target = merging.take(4 * (m + 1));
  at.segments_before = merging.take(4 * (m + 1));
  at.target_of_segment = merging.take(2 * segments);
  at.partial_sums = merging.take(4 * segments * tiling.tile_vectors * vector_elements(p));
  return merging.end();
}

SharedLayout lay_out(const ZipProblem& p, const ZipTiling& tiling) {
  const int64_t S = p.S, words = ceil_divide(S, 32);
  SharedLayout at{};
  BumpAllocator always(0);
  at.scores = always.take(4 * S);
  at.merged_into = always.take(2 * S);
  at.softmax_stats = always.take(scores_in_kernel(p) && !p.has_lse ? 8 * most_chunks(p) * heads_pitch(p.H) : 0);
  at.selected_bitmap = always.take(4 * words);
  at.offers = always.take(p.policy == SelectionPolicy::kDistinct ? 2 * 16 * int64_t{tiling.team_blocks} : 0);
  at.replicated_end = always.end();
  at.selected_before = always.take(4 * words);
  at.kept = always.take(int64_t{2} * p.k);
  at.targets = always.take(int64_t{2} * p.m);
  at.digit_counts = always.take(4 * kDigitRounds * 32);
  at.overlay = always.end();
  const int32_t decision_end = lay_out_decision(p, tiling, at), merging_end = lay_out_merging(p, tiling, at);
  BumpAllocator last(round_up(std::max(decision_end, merging_end), 128));
  at.stage = last.take(tiling.staged ? 16 * S * tiling.tile_vectors : 0);
  at.total = last.end();
  return at;
}

}  // namespace

int32_t block_vectors_of(const ZipProblem& p, int32_t team_blocks) {
  return ceil_divide(p.C / vector_elements(p), team_blocks);
}

ZipTiling make_tiling(const ZipProblem& p, int32_t team_blocks, int32_t teams, HiddenTile tile, bool rank_counting) {
  ZipTiling tiling{};
  tiling.team_blocks = team_blocks;
  tiling.teams = teams;
  tiling.block_vectors = block_vectors_of(p, team_blocks);
  const int32_t whole = std::max(tiling.block_vectors, 1);
  tiling.tile_vectors = tile.vectors > 0 ? std::min(tile.vectors, whole) : whole;
  tiling.Dp = round_up(p.D, 4);
  tiling.staged = tile.staged;
  tiling.rank_counting = rank_counting;
  tiling.at = lay_out(p, tiling);
  // A counter; the replicated arrays twice (see GridTeam); the metric.
  const int64_t scratch = kCounterBytes + 2 * int64_t{tiling.at.replicated_end} + int64_t{4} * p.S * tiling.Dp;
  tiling.scratch_of_team = round_up(scratch, 256);
  return tiling;
}

}  // namespace visionzip::cuda
