#include "cpu/kernels/weights.h"

#include <vector>

namespace visionzip::cpu {

void token_weights(const int64_t* assignment, const Selection& selection, int64_t first_target_row, MergeMode mode,
                   float* weights) {
  std::vector<int64_t> counts(selection.targets.size());
  const auto count_of = [&](int64_t token) -> int64_t& {
    return counts[static_cast<size_t>(assignment[token] - first_target_row)];
  };
  for (const int64_t token : selection.merged) count_of(token)++;
  const bool mean = mode == MergeMode::kMean;
  for (const int64_t token : selection.kept) weights[token] = 1.f;
  for (const int64_t token : selection.merged) {
    const int64_t n = count_of(token);
    weights[token] = 1.f / static_cast<float>(mean ? n + 1 : n);
  }
  for (const int64_t token : selection.targets) {
    weights[token] = mean ? 1.f / static_cast<float>(count_of(token) + 1) : 1.f;
  }
}

}  // namespace visionzip::cpu
