#include <algorithm>

#include "cuda/plan/zip_params.h"

namespace visionzip::cuda {

namespace {

// Hands out aligned pieces of shared memory.
class Carver {
 public:
  explicit Carver(int32_t at) : at_(at) {}
  int32_t take(int64_t bytes) {
    const int32_t piece = at_;
    at_ = static_cast<int32_t>(std::min<int64_t>(at_ + (bytes + 15) / 16 * 16, kTooMuch));
    return piece;
  }
  int32_t end() const { return at_; }

 private:
  static constexpr int64_t kTooMuch = 1 << 30;  // more than any GPU has: the plan sees that it does not fit
  int32_t at_;
};

}  // namespace

void lay_out(ZipParams& p, int32_t hidden_element_bytes) {
  const int64_t S = p.S, H = p.H, m = p.m;
  // Of packed images any may have next to no rows, and a short one more chunks than a long one.
  const int64_t merged = m == 0 ? 0 : p.sequences ? S : S - p.k - m;
  const int64_t chunks = p.sequences ? std::max(chunks_of(p.S), chunks_of(std::min(p.S, kShortImage))) : chunks_of(p.S);
  const int64_t words = (S + 31) / 32;
  const int32_t per_vector = 16 / hidden_element_bytes;
  const bool from_queries = p.queries != nullptr, needs_stats = from_queries && !p.lse;
  p.Dp = round_up(p.D, 4);
  p.most_segments = m ? static_cast<int32_t>(merged / kSegment + m) : 0;
  const int32_t vectors = p.C / per_vector;
  p.block_vectors = (vectors + p.team_blocks - 1) / p.team_blocks;
  if (p.tile_vectors <= 0 || p.tile_vectors > p.block_vectors) p.tile_vectors = std::max(p.block_vectors, 1);

  SharedLayout& at = p.at;
  Carver always(0);
  at.scores = always.take(4 * S);
  at.merged_into = always.take(2 * S);
  at.softmax_stats = always.take(needs_stats ? 8 * chunks * H : 0);
  at.kept_bytes = always.take(4 * words);
  at.replicated_end = always.end();
  at.kept_before = always.take(4 * words);
  at.kept = always.take(2 * p.k);
  at.targets = always.take(2 * m);
  at.digit_counts = always.take(4 * 32);
  at.overlay = always.end();

  const int64_t own = block_tokens_of(p.S, p.team_blocks);
  const bool sums_rows = !from_queries && p.attn_rows > 1;
  Carver decision(at.overlay);
  at.metric = decision.take(4 * own * p.Dp);
  Carver scoring(decision.end()), targets(decision.end());
  at.head_stats = scoring.take(from_queries ? 8 * H : 0);
  at.query = scoring.take(from_queries ? 4 * H * round_up(p.D, 8) : 0);
  at.logits = scoring.take(from_queries ? 4 * own * H : sums_rows ? 4 * own * p.attn_heads : 0);
  const int64_t tile = std::min<int64_t>(m, kTargetTile);
  at.target_metric = targets.take(4 * tile * p.Dp);

  Carver merging(at.overlay);
  const bool merges = m > 0 && p.hidden != nullptr;
  at.token_list = merging.take(merges ? 2 * merged : 0);
  at.first_of_target = merging.take(merges ? 4 * (m + 1) : 0);
  at.segments_before = merging.take(merges ? 4 * (m + 1) : 0);
  at.target_of_segment = merging.take(merges ? 2 * p.most_segments : 0);
  at.partial_sums = merging.take(merges ? int64_t{4} * p.most_segments * p.tile_vectors * per_vector : 0);

  Carver last((std::max({scoring.end(), targets.end(), merging.end()}) + 127) / 128 * 128);
  at.stage = last.take(p.staged ? 16 * S * p.tile_vectors : 0);
  at.total = last.end();

  // A counter; the replicated arrays twice (see GridTeam); the metric.
  const int64_t scratch = kCounterBytes + 2 * int64_t{at.replicated_end} + 4 * S * p.Dp;
  p.scratch_of_team = (scratch + 255) / 256 * 256;
}

}  // namespace visionzip::cuda
