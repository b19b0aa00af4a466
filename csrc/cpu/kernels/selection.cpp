#include "cpu/kernels/selection.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>

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
  Splitter(int64_t remaining, int64_t m, Selection& selection)
      : m_(m), step_(target_step(remaining, m)), selection_(selection) {
    selection.targets.reserve(static_cast<size_t>(m));
    selection.merged.reserve(static_cast<size_t>(m ? remaining - m : 0));
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

std::vector<int64_t> highest_scores(const float* scores, int64_t n, int64_t count) {
  std::vector<int64_t> highest;
  if (count == 0) return highest;
  std::vector<uint64_t> order(static_cast<size_t>(n));  // score above, complement of the index below: all different
  for (int64_t j = 0; j < n; j++) {
    order[static_cast<size_t>(j)] = uint64_t{ordered(scores[j])} << 32 | (0xffffffffu - static_cast<uint32_t>(j));
  }
  std::vector<uint64_t> copy(order);
  const auto last = copy.begin() + (count - 1);
  std::nth_element(copy.begin(), last, copy.end(), std::greater<>());
  highest.reserve(static_cast<size_t>(count));
  for (int64_t j = 0; j < n; j++) {
    if (order[static_cast<size_t>(j)] >= *last) highest.push_back(j);
  }
  return highest;
}

Selection split_tokens(std::vector<int64_t> kept, int64_t S, int64_t m, bool keep_cls) {
  Selection selection;
  const int64_t first = keep_cls ? 0 : 1;
  Splitter split(S - first - static_cast<int64_t>(kept.size()), m, selection);
  auto next = kept.begin();
  for (int64_t j = first; j < S; j++) {
    if (next != kept.end() && *next == j) {
      ++next;
    } else {
      split.add(j);
    }
  }
  selection.kept = std::move(kept);
  return selection;
}

Selection read_decision(const DecisionPlace& place, const int64_t* assignment, int64_t S, int64_t k, int64_t m) {
  const auto fail = [&](const std::string& what) {
    throw std::runtime_error("visionzip::" + std::string(place.op) + ": " + what + "; expected a decision for k = " +
                             std::to_string(k) + " and m = " + std::to_string(m) + ", as select returns it");
  };
  Selection selection;
  selection.kept.assign(static_cast<size_t>(k), -1);
  const int64_t first = m > 0 && S > 0 && assignment[0] == -1 ? 1 : 0;  // CLS, where it takes no row
  if (k + m > S - first) fail(name_of(place, 0) + " is -1");
  Splitter split(S - first - k, m, selection);
  for (int64_t j = first; j < S; j++) {
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
