// What the column-sums kernel is asked for: sizes, element types and flags, and what the order of its sums follows
// from. No pointers and no torch or CUDA header.
#pragma once

#include "common/types.h"

namespace visionzip::cuda {

// The order of all sums follows from these and from the sequence's length alone.
constexpr int kTileQueries = 32;  // queries whose logits are formed at a time
constexpr int kStripKeys = 64;    // keys that a warp forms their logits with
constexpr int kSumChunks = 8;     // a head's queries are summed in so many chunks of whole tiles
constexpr int kRowBlock = 1024;   // queries of a chunk whose softmax statistics are held at a time

struct ColumnSumsProblem {
  DType dtype;   // of queries and keys
  bool has_lse;  // the log-sum-exp of each query's logits is given
  float scale;   // of logits
  int32_t S;     // cells, rows of queries and keys, of each image; where images are packed, the most that any has
  int32_t H, D;
  int32_t group;  // cells to a token; 1 unless images are packed
  int64_t images;
  int64_t all_cells;  // of all images

  bool operator==(const ColumnSumsProblem&) const = default;
};

}  // namespace visionzip::cuda
