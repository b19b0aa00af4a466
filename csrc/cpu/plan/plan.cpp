#include "cpu/plan/plan.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "common/key_values.h"
#include "common/rounding.h"

namespace visionzip::cpu {

namespace {

// Column sums of softmax(Q K^T).
bool sums_columns(const Problem& p) { return decides(p.operation) && p.source == ScoreSource::kQueryKey && !p.has_cls; }

// The largest first, each to the thread that has least.
std::vector<std::vector<int64_t>> deal(const std::vector<double>& work, const int64_t* images, int64_t count,
                                       int64_t threads, double& most) {
  std::vector<std::vector<int64_t>> dealt(static_cast<size_t>(threads));
  std::vector<double> load(static_cast<size_t>(threads));
  for (int64_t i = 0; i < count; i++) {
    const auto least = static_cast<size_t>(std::min_element(load.begin(), load.end()) - load.begin());
    dealt[least].push_back(images[i]);
    load[least] += work[static_cast<size_t>(images[i])];
  }
  most = *std::max_element(load.begin(), load.end());
  return dealt;
}

const std::string kVariable = "VISIONZIP_CPU_PLAN";

int64_t count(const std::string& key, const std::string& value) {
  constexpr int64_t kMost = 1 << 20;
  return parse_number<int64_t>(kVariable, key, value, 1, kMost, "1 to " + std::to_string(kMost));
}

double ratio(const std::string& key, const std::string& value, double least) {
  const std::string expected = least == 1 ? "a number from 1 to 1000" : "a number from 0 to 1000";
  return parse_number<double>(kVariable, key, value, least, 1000, expected);
}

void set(Factors& factors, const std::string& key, const std::string& value) {
  if (key == "least_tokens") {
    factors.least_tokens = count(key, value);
  } else if (key == "head_rounds") {
    factors.head_rounds = count(key, value);
  } else if (key == "most_above_mean") {
    factors.most_above_mean = ratio(key, value, 1);
  } else if (key == "assign_work") {
    factors.assign_work = ratio(key, value, 0);
  } else if (key == "column_work") {
    factors.column_work = ratio(key, value, 0);
  } else {
    unknown_key(kVariable, key, "least_tokens, head_rounds, most_above_mean, assign_work or column_work");
  }
}

}  // namespace

Factors factors() {
  Factors factors;
  const char* text = std::getenv(kVariable.c_str());
  if (!text) return factors;
  for (const auto& [key, value] : parse_key_values(kVariable, text)) set(factors, key, value);
  return factors;
}

ImagePlan plan_image(const Problem& p, int64_t sharing, int64_t threads) {
  const Factors by = factors();
  ImagePlan plan{};
  plan.least_tokens = by.least_tokens;
  // Whole rows, which are read fastest; of the widest, as much as leaves their sum in the second-level cache.
  constexpr int64_t kLeastChannels = 64, kMostChannels = 1 << 14;
  const auto channels = [&](int64_t wanted) {
    return std::clamp(round_up(wanted, kLeastChannels), kLeastChannels, kMostChannels);
  };
  plan.whole_channels = channels(p.C);
  plan.shared_channels = channels(ceil_divide(p.C * sharing, threads));
  plan.row_shares = sharing ? ceil_divide(threads, sharing) : 1;
  plan.query_chunks = sharing && sums_columns(p) && sharing * p.H < by.head_rounds * threads ? kQueryChunks : 1;
  return plan;
}

Division divide_equal_images(int64_t images, int64_t threads) {
  Division division;
  const int64_t shared = images % threads, each = images / threads;
  for (int64_t t = 0; each > 0 && t < threads; t++) {
    std::vector<int64_t>& own = division.whole.emplace_back(static_cast<size_t>(each));
    std::iota(own.begin(), own.end(), t * each);
  }
  division.shared.resize(static_cast<size_t>(shared));
  std::iota(division.shared.begin(), division.shared.end(), images - shared);
  return division;
}

Division divide_images(const std::vector<double>& work, int64_t threads) {
  std::vector<int64_t> by_work(work.size());  // the largest first
  std::iota(by_work.begin(), by_work.end(), 0);
  std::stable_sort(by_work.begin(), by_work.end(),
                   [&](int64_t a, int64_t b) { return work[static_cast<size_t>(a)] > work[static_cast<size_t>(b)]; });
  double left = std::accumulate(work.begin(), work.end(), 0.0);
  Division division;
  // Sharing ends once no image is larger than this allows, at the latest; with 1.15 that is after threads / 0.15
  // images.
  const double most_above_mean = factors().most_above_mean;
  for (int64_t shared = 0;; shared++) {
    double most = 0;
    const auto rest = static_cast<int64_t>(work.size()) - shared;
    division.whole = deal(work, by_work.data() + shared, rest, threads, most);
    if (most * static_cast<double>(threads) <= most_above_mean * left || rest == 0) return division;
    division.shared.push_back(by_work[static_cast<size_t>(shared)]);
    left -= work[static_cast<size_t>(division.shared.back())];
  }
}

// In multiplications and additions, or elements moved.
double work_of(const Problem& p) {
  const auto number = [](int64_t x) { return static_cast<double>(x); };
  const double S = number(p.S), cells = S * number(p.group);
  double work = 1 + number(p.C) * S;
  if (!decides(p.operation)) return work;
  const Factors by = factors();
  const double heads = number(p.H) * number(p.D);
  work += cells * heads + S * number(p.D) * number(p.m) * by.assign_work;
  if (p.policy == SelectionPolicy::kDistinct) work += number(p.k) * S * number(p.D) * by.assign_work;
  if (sums_columns(p)) work += cells * cells * heads * by.column_work;
  return work;
}

Plan plan_batch(const Problem& p, int64_t threads) {
  Plan plan{};
  plan.shared_images = p.B % threads;
  plan.whole_images = p.B - plan.shared_images;
  plan.whole = plan_image(p, 0, threads);
  plan.shared = plan_image(p, plan.shared_images, threads);

  const bool mean_of_logits = sums_columns(p);
  const int64_t metric = decides(p.operation) ? p.S * p.D * 4 : 0;
  const bool distinct = decides(p.operation) && p.policy == SelectionPolicy::kDistinct;
  const int64_t units = distinct ? round_up(p.S, 16) * (p.D + 1) * 4 : 0;
  const int64_t logits = decides(p.operation) && p.source == ScoreSource::kQueryKey && p.has_cls ? p.H * p.S * 4 : 0;
  const int64_t head_sums = mean_of_logits ? p.H * plan.shared.query_chunks * p.S * 4 : 0;
  // For one head at a time: its keys, packed, and a tile of logits (at most 12 rows); and its sums.
  const int64_t packed = round_up(p.S, 32);
  const int64_t tile = mean_of_logits ? (packed * p.D + 12 * (packed + p.D)) * 4 : 0;
  const int64_t chunk_sums = mean_of_logits ? kQueryChunks * p.S * 4 : 0;
  const int64_t sums = std::max(plan.whole.whole_channels, plan.shared.shared_channels) * 4;
  const int64_t images = plan.whole_images ? threads : plan.shared_images;
  plan.largest_temporary_bytes = std::max({metric, units, logits, head_sums, tile, sums});
  plan.workspace_bytes =
      images * (metric + units + logits + head_sums + p.S * 4) + threads * (tile + chunk_sums + sums);
  return plan;
}

}  // namespace visionzip::cpu
