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

// The numbers of the `count` highest of n scores, ascending.  Equal: the lower number; NaN below every number.
std::vector<int64_t> highest_scores(const float* scores, int64_t n, int64_t count);

// kept: ascending.  keep_cls: false where token 0 is CLS and takes no row.
Selection split_tokens(std::vector<int64_t> kept, int64_t S, int64_t m, bool keep_cls);

// Which decision it is, for the words of an error, and what its numbers are counted from.
struct DecisionPlace {
  const char* op;
  int64_t image;                           // its number in the batch, or of the packed sequence
  bool packed = false;                     // then all sequences' tokens lie in one row,
  int64_t first_token = 0, first_row = 0;  // and this one's tokens and output rows begin here
};

// Reads the selection back from a decision; with m > 0, -1 at token 0 says that CLS takes no row.  Throws
// std::runtime_error where `assignment` (S) is none.
Selection read_decision(const DecisionPlace& place, const int64_t* assignment, int64_t S, int64_t k, int64_t m);

}  // namespace visionzip::cpu
