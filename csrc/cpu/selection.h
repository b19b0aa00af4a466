// Which tokens are kept, which are targets, which are to be merged: from scores or from a finished assignment.
#pragma once

#include <cstdint>
#include <vector>

namespace visionzip::cpu {

struct Selection {
  std::vector<int64_t> kept;     // (k) tokens, ascending
  std::vector<int64_t> targets;  // (m) tokens, ascending
  std::vector<int64_t> merged;   // the other tokens, ascending; none for m = 0
};

// The k highest of S scores (with CLS: token 0, then the highest of the rest).  Equal: the lower index; NaN below every
// number.
Selection select_by_score(const float* scores, int64_t S, int64_t k, int64_t m, bool has_cls);

// Reads the selection back from a decision on image b.  Throws std::runtime_error where `assignment` (S) is none.
Selection read_decision(const char* op, const int64_t* assignment, int64_t b, int64_t S, int64_t k, int64_t m);

}  // namespace visionzip::cpu
