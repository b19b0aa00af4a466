#include "cuda/plan/column_sums_plan.h"

#include <algorithm>

#include "common/rounding.h"
#include "cuda/plan/column_sums_layout.h"
#include "cuda/plan/thresholds.h"

namespace visionzip::cuda {

namespace {

// One pass holds a strip of keys for each warp and two tiles of queries; of two, the first holds a tile of queries for
// each warp and two strips of keys.
int64_t shared_bytes(const ColumnSumsProblem& p, int32_t warps) {
  const int32_t rows = std::max(warps * kStripKeys + 2 * kTileQueries, warps * kTileQueries + 2 * kStripKeys);
  return int64_t{rows} * row_pitch(p.D, static_cast<int>(size_of(p.dtype))) + kStatBytes + kHeadBytes;
}

// The most that shared memory has room for; 0: not even for one.
int32_t most_warps(const ColumnSumsProblem& p, const Gpu& gpu) {
  int32_t warps = kMostWarps;
  while (warps > 0 && shared_bytes(p, warps) > gpu.block_shared_bytes) warps--;
  return warps;
}

// Every block reads all keys of its head, so few, long blocks are best where there are many heads: as long as a few
// waves of them remain, which even out at the end.  A multiprocessor has registers for kMostWarps.  Waves are counted
// by work, the square of an image's cells, and not by blocks: packed images that are shorter than the longest have less
// of it; how much less at most, their mean length tells.
int32_t choose_block_chunks(const ColumnSumsProblem& p, const Gpu& gpu, int32_t warps) {
  const double waves = thresholds_of(gpu.compute_capability).column_sum_waves.value;
  const double enough = waves * gpu.multiprocessors * (kMostWarps / warps);
  const auto S = static_cast<double>(p.S), cells = static_cast<double>(p.all_cells);
  const double work = p.H * cells * cells / static_cast<double>(p.images);
  int32_t chunks = kSumChunks;
  while (chunks > 1 && work < enough * S * S * chunks / kSumChunks) chunks /= 2;
  return chunks;
}

std::string describe(const ColumnSumsProblem& p, const ColumnSumsTiling& tiling) {
  const char* path = p.has_lse ? "log-sum-exp given" : p.S <= tiling.one_pass_tokens ? "one pass" : "two passes";
  return std::string(path) + "; blocks a head: " + std::to_string(kSumChunks / tiling.block_chunks);
}

int64_t sums_bytes(const ColumnSumsProblem& p) { return p.all_cells * p.H * kSumChunks * int64_t{sizeof(float)}; }

// Two launches: statistics of softmax, by tiles of queries; then the columns, by chunks of queries and strips of keys.
ColumnSumsPlan plan_sliced(const ColumnSumsProblem& p, const std::string& why) {
  const int64_t strips = ceil_divide(int64_t{p.S}, kStripKeys), groups = ceil_divide(strips, kSlicedWarps);
  const int64_t stats_bytes = p.has_lse ? 0 : p.all_cells * p.H * 2 * int64_t{sizeof(float)};
  return {.blocks = static_cast<int32_t>(std::min<int64_t>(p.images * p.H * kSumChunks * groups, INT32_MAX)),
          .threads = kSlicedWarps * 32,
          .shared_bytes = 0,
          .sums_bytes = sums_bytes(p) + stats_bytes,
          .tiling = {.one_pass_tokens = 0, .block_chunks = 1, .sliced = true},
          .why = "heads in slices of " + std::to_string(kSlicedChannels) + " channels: " + why};
}

}  // namespace

ColumnSumsPlan plan_column_sums(const ColumnSumsProblem& p, const Gpu& gpu, int32_t forced_chunks) {
  if (p.D > kMostHeadChannels) return plan_sliced(p, "D is over " + std::to_string(kMostHeadChannels));
  const int32_t most = most_warps(p, gpu);
  if (most == 0) {
    return plan_sliced(p, "shared memory of " + std::to_string(gpu.block_shared_bytes) +
                              " bytes is too small for D = " + std::to_string(p.D));
  }
  const int32_t warps = static_cast<int32_t>(std::clamp<int64_t>(ceil_divide(int64_t{p.S}, kStripKeys), 1, most));
  const ColumnSumsTiling tiling{.one_pass_tokens = most * kStripKeys,
                                .block_chunks = forced_chunks > 0 ? forced_chunks : choose_block_chunks(p, gpu, warps),
                                .sliced = false};
  const int64_t blocks = p.images * p.H * (kSumChunks / tiling.block_chunks);
  if (blocks > INT32_MAX) return plan_sliced(p, "there are too many for a launch");
  return {.blocks = static_cast<int32_t>(blocks),
          .threads = warps * 32,
          .shared_bytes = static_cast<int32_t>(shared_bytes(p, warps)),
          .sums_bytes = sums_bytes(p),
          .tiling = tiling,
          .why = describe(p, tiling)};
}

}  // namespace visionzip::cuda
