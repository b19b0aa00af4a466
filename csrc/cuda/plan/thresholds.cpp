#include "cuda/plan/thresholds.h"

namespace visionzip::cuda {

namespace {

constexpr const char* kModelled = "modelled";

// What instruction counts and published latencies say: until a generation is measured, it goes by this.
constexpr Thresholds kAllModelled{
    .least_cluster_team = {4, kModelled},
    .most_cluster_team = {16, kModelled},
    .least_grid_team = {2, kModelled},
    .most_grid_team = {16, kModelled},
    .largest_grid_team = {64, kModelled},
    .many_images_threads = {256, kModelled},
    .staging_waves = {1.0, kModelled},
    .block_path_images = {1.0, kModelled},
    .rank_comparisons = {32 << 10, kModelled},
    .column_sum_waves = {4.0, kModelled},
};

constexpr Thresholds kBeforeHopper = kAllModelled;  // Turing, Ampere and Ada: 7.5 to 8.9
constexpr Thresholds kHopper = kAllModelled;        // 9.0
constexpr Thresholds kBlackwell = kAllModelled;     // 10.0 and later

}  // namespace

const Thresholds& thresholds_of(int32_t compute_capability) {
  return compute_capability < 90 ? kBeforeHopper : compute_capability < 100 ? kHopper : kBlackwell;
}

std::map<std::string, std::pair<double, std::string>> list_thresholds(const Thresholds& t) {
  const auto entry = [](const auto& threshold) {
    return std::pair<double, std::string>(threshold.value, threshold.source);
  };
  return {{"least_cluster_team", entry(t.least_cluster_team)}, {"most_cluster_team", entry(t.most_cluster_team)},
          {"least_grid_team", entry(t.least_grid_team)},       {"most_grid_team", entry(t.most_grid_team)},
          {"largest_grid_team", entry(t.largest_grid_team)},   {"many_images_threads", entry(t.many_images_threads)},
          {"staging_waves", entry(t.staging_waves)},           {"block_path_images", entry(t.block_path_images)},
          {"rank_comparisons", entry(t.rank_comparisons)},     {"column_sum_waves", entry(t.column_sum_waves)}};
}

}  // namespace visionzip::cuda
