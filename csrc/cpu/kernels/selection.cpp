#include "cpu/kernels/selection.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>

#include "common/types.h"

namespace visionzip::cpu {

namespace {

// Unsigned order is the order of floats: NaN lowest, -0 equal to +0.
uint32_t ordered(float x) {
  if (x != x) return 0;
  x += 0.f;  // -0 becomes +0
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

// The remaining tokens, in ascending order, become targets and tokens to merge.
class Splitter {
 public:
  Splitter(int64_t S, int64_t k, int64_t m, Selection& selection)
      : m_(m), step_(target_step(S - k, m)), selection_(selection) {
    selection.targets.reserve(static_cast<size_t>(m));
    selection.merged.reserve(static_cast<size_t>(m ? S - k - m : 0));
  }

  // Number of the target that this token is, or -1.
  int64_t add(int64_t token) {
    const int64_t rank = rank_++, target = rank / step_;
    if (m_ == 0) return -1;
    if (rank % step_ == 0 && target < m_) {
      selection_.targets.push_back(token);
      return target;
    }
    selection_.merged.push_back(token);
    return -1;
  }

 private:
  int64_t m_, step_, rank_ = 0;
  Selection& selection_;
};

// An image's part of the assignment.
std::string name_of(const DecisionPlace& place) {
  const std::string image = std::to_string(place.image);
  return place.packed ? "the assignment of sequence " + image : "assignment[" + image + "]";
}

// Its entry for token j.
std::string name_of(const DecisionPlace& place, int64_t j) {
  if (!place.packed) return name_of(place) + "[" + std::to_string(j) + "]";
  return "assignment[" + std::to_string(place.first_token + j) + "] (sequence " + std::to_string(place.image) + ")";
}

}  // namespace

Selection select_by_score(const float* scores, int64_t S, int64_t k, int64_t m, bool has_cls) {
  std::vector<uint64_t> order(static_cast<size_t>(S));  // score above, complement of the index below: all different
  for (int64_t j = 0; j < S; j++) {
    order[static_cast<size_t>(j)] = uint64_t{ordered(scores[j])} << 32 | (0xffffffffu - static_cast<uint32_t>(j));
  }
  if (has_cls) order[0] = ~uint64_t{0};
  uint64_t least = ~uint64_t{0};  // the k-th highest
  if (k > 0) {
    std::vector<uint64_t> copy(order);
    const auto kth = copy.begin() + (k - 1);
    std::nth_element(copy.begin(), kth, copy.end(), std::greater<>());
    least = *kth;
  }
  Selection selection;
  selection.kept.reserve(static_cast<size_t>(k));
  Splitter split(S, k, m, selection);
  for (int64_t j = 0; j < S; j++) {
    if (k > 0 && order[static_cast<size_t>(j)] >= least) {
      selection.kept.push_back(j);
    } else {
      split.add(j);
    }
  }
  return selection;
}

Selection read_decision(const DecisionPlace& place, const int64_t* assignment, int64_t S, int64_t k, int64_t m) {
  const auto fail = [&](const std::string& what) {
    throw std::runtime_error("visionzip::" + std::string(place.op) + ": " + what + "; expected a decision for k = " +
                             std::to_string(k) + " and m = " + std::to_string(m) + ", as select returns it");
  };
  Selection selection;
  selection.kept.assign(static_cast<size_t>(k), -1);
  Splitter split(S, k, m, selection);
  for (int64_t j = 0; j < S; j++) {
    const int64_t given = assignment[j];
    const bool is_row = given >= place.first_row && given < place.first_row + k + m;
    const int64_t row = is_row ? given - place.first_row : -1;
    bool fits = is_row || (m == 0 && given == -1);
    if (is_row && row < k) {
      int64_t& kept = selection.kept[static_cast<size_t>(row)];
      fits = kept < 0;
      kept = j;
    } else if (fits) {
      const int64_t target = split.add(j);
      fits = target < 0 || row == k + target;
    }
    if (!fits) fail(name_of(place, j) + " is " + std::to_string(given));
  }
  for (int64_t row = 0; row < k; row++) {
    if (selection.kept[static_cast<size_t>(row)] >= 0) continue;
    fail(name_of(place) + " names no token for row " + std::to_string(place.first_row + row));
  }
  return selection;
}

}  // namespace visionzip::cpu
