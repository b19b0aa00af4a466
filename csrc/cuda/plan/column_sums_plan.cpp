#include "cuda/plan/column_sums_plan.h"

#include <algorithm>

namespace visionzip::cuda {

namespace {

// One pass holds a strip of keys for each warp and two tiles of queries; of two, the first holds a tile of queries for
// each warp and two strips of keys.
int64_t shared_bytes(int32_t warps, int32_t channels, int32_t element_bytes) {
  const int32_t rows = std::max(warps * kStripKeys + 2 * kTileQueries, warps * kTileQueries + 2 * kStripKeys);
  return int64_t{rows} * row_pitch(channels, element_bytes) + kStatBytes + kHeadBytes;
}

// Every block reads all keys of its head, so few, long blocks are best where there are many heads: as long as four
// waves of them remain, which even out at the end (reasoned, not measured).  A multiprocessor has registers for
// kMostWarps.  Waves are counted by work, the square of an image's cells, and not by blocks: packed images that are
// shorter than the longest have less of it; how much less at most, their mean length tells.
int32_t choose_block_chunks(const ColumnSumsParams& p, const Gpu& gpu, int32_t warps) {
  const double enough = 4.0 * gpu.multiprocessors * (kMostWarps / warps);
  const auto S = static_cast<double>(p.S), cells = static_cast<double>(p.all_cells);
  const double work = p.H * cells * cells / static_cast<double>(p.images);
  int32_t chunks = kSumChunks;
  while (chunks > 1 && work < enough * S * S * chunks / kSumChunks) chunks /= 2;
  return chunks;
}

const char* name_of_path(const ColumnSumsParams& p) {
  if (p.lse) return "log-sum-exp given";
  return p.S <= p.one_pass_tokens ? "one pass" : "two passes";
}

}  // namespace

ColumnSumsPlan plan_column_sums(ColumnSumsParams& p, int32_t element_bytes, const Gpu& gpu) {
  const auto none = [](const std::string& why) { return ColumnSumsPlan{false, 0, 0, 0, 0, why}; };
  if (p.D > kMostHeadChannels) return none("D is over " + std::to_string(kMostHeadChannels));
  int32_t warps = kMostWarps;
  while (warps > 0 && shared_bytes(warps, p.D, element_bytes) > gpu.block_shared_bytes) warps--;
  if (warps == 0) {
    return none("shared memory of " + std::to_string(gpu.block_shared_bytes) +
                " bytes is too small for D = " + std::to_string(p.D));
  }
  p.one_pass_tokens = warps * kStripKeys;
  warps = std::clamp((p.S + kStripKeys - 1) / kStripKeys, 1, warps);
  p.block_chunks = choose_block_chunks(p, gpu, warps);
  const int64_t blocks = p.images * p.H * (kSumChunks / p.block_chunks);
  if (blocks > 0x7fffffff) return none("there are more than 2147483647 blocks");
  ColumnSumsPlan plan{};
  plan.possible = true;
  plan.blocks = static_cast<int32_t>(blocks);
  plan.threads = warps * 32;
  plan.shared_bytes = static_cast<int32_t>(shared_bytes(warps, p.D, element_bytes));
  plan.sums_bytes = p.all_cells * p.H * kSumChunks * int64_t{sizeof(float)};
  plan.why = std::string(name_of_path(p)) + "; blocks a head: " + std::to_string(kSumChunks / p.block_chunks);
  return plan;
}

}  // namespace visionzip::cuda
