// Images of different sizes, packed along one axis of tokens.  Where each lies is worked out on the GPU, from
// cu_seqlens, which the host never reads, and from k and m, which it knows.  No torch header.
#pragma once

#include <cstdint>
#include <vector>

namespace visionzip::cuda {

struct Sequence {
  int32_t first_token, tokens;  // in hidden, keys, queries, scores and assignment
  int32_t k, m;
  int32_t first_row, first_kept;  // in the output's tokens and in indices
};

// Device memory for what placing writes.
struct PlacedSequences {
  Sequence* sequences;  // (count)
  int32_t* order;       // (count): their numbers, the longest first
  int32_t* row_starts;  // (count + 1): the cu_seqlens of the output's tokens; or null
};

struct Packing {
  const int32_t* cu_seqlens;  // (count + 1), in device memory
  int32_t count;
  int32_t tokens;   // of all sequences
  int32_t longest;  // that none of them exceeds
  int32_t rowless;  // 1 where the first token of each is CLS and takes no row
};

}  // namespace visionzip::cuda
