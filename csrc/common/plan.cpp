#include "visionzip/plan.h"

#include <algorithm>

namespace visionzip {

namespace {

int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

}  // namespace

CpuPlan plan_cpu(const Problem& p, int64_t threads) {
  CpuPlan plan{};
  plan.shared_images = p.B % threads;
  plan.whole_images = p.B - plan.shared_images;
  plan.key_tokens = 32;

  // Whole rows, which are read fastest, as long as the sums stay in the second-level cache.
  constexpr int64_t kSumBytes = 256 << 10, kLeastChannels = 64;
  const int64_t fitting = kSumBytes / (4 * std::max<int64_t>(p.m, 1)) / kLeastChannels * kLeastChannels;
  const auto channels = [&](int64_t wanted) {
    return std::max(kLeastChannels, std::min(fitting, round_up(wanted, kLeastChannels)));
  };
  plan.whole_channels = channels(p.C);
  plan.row_shares = (threads + plan.shared_images - 1) / std::max<int64_t>(plan.shared_images, 1);
  plan.shared_channels = channels((p.C * plan.shared_images + threads - 1) / threads);

  const bool decides = p.operation != Operation::kMerge;
  const bool mean_of_logits = decides && p.source == ScoreSource::kQueryKey && !p.has_cls;
  plan.query_chunks = mean_of_logits && plan.shared_images * p.H < 4 * threads ? kQueryChunks : 1;

  const int64_t metric = decides ? p.S * p.D * 4 : 0;
  const int64_t logits = decides && p.source == ScoreSource::kQueryKey && p.has_cls ? p.H * p.S * 4 : 0;
  const int64_t head_sums = mean_of_logits ? p.H * plan.query_chunks * p.S * 4 : 0;
  // For one head at a time: its keys, packed, and a tile of logits (at most 12 rows); and its sums.
  const int64_t packed = round_up(p.S, 32);
  const int64_t tile = mean_of_logits ? (packed * p.D + 12 * (packed + p.D)) * 4 : 0;
  const int64_t chunk_sums = mean_of_logits ? kQueryChunks * p.S * 4 : 0;
  const int64_t sums = p.m * std::max(plan.whole_channels, plan.shared_channels) * 4;
  const int64_t images = plan.whole_images ? threads : plan.shared_images;
  plan.largest_temporary_bytes = std::max({metric, logits, head_sums, tile, sums});
  plan.workspace_bytes = images * (metric + logits + head_sums + p.S * 4) + threads * (tile + chunk_sums + sums);
  return plan;
}

}  // namespace visionzip
