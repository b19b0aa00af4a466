// What one launch of the column-sums kernel needs: the problem and the plan.  Plain data; no torch and no CUDA header.
#pragma once

#include "common/types.h"
#include "cuda/plan/sequences.h"

namespace visionzip::cuda {

// The order of all sums follows from these and from the sequence's length alone.
constexpr int kTileQueries = 32;  // queries whose logits are formed at a time
constexpr int kStripKeys = 64;    // keys that a warp forms their logits with
constexpr int kSumChunks = 8;     // a head's queries are summed in so many chunks of whole tiles
constexpr int kRowBlock = 1024;   // queries of a chunk whose softmax statistics are held at a time

constexpr int kMostWarps = 16;  // of a block: with more, a thread would have too few registers
constexpr int kMostHeadChannels = 256;

// Rows of queries and keys in shared memory: 16-byte units, and an odd number of them from row to row, so that eight
// rows' units of one number lie in different banks.
VISIONZIP_HOST_DEVICE inline constexpr int row_units(int channels, int element_bytes) {
  return (channels * element_bytes + 15) / 16;
}
VISIONZIP_HOST_DEVICE inline constexpr int row_pitch(int channels, int element_bytes) {
  return (row_units(channels, element_bytes) | 1) * 16;
}

// Shared memory: what the block works on; statistics; rows.
constexpr int kHeadBytes = 128;

// Either the strips' statistics of two tiles, or those of kRowBlock queries: pairs of floats.  An odd number of pairs
// from query to query.
constexpr int kStatPitch = kMostWarps | 1;
constexpr int kStatBytes = 8 * (2 * kTileQueries * kStatPitch > kRowBlock ? 2 * kTileQueries * kStatPitch : kRowBlock);

// In elements; every last dimension has unit stride.
struct ColumnSumsParams {
  const void *queries, *keys;  // (images, H, S, D); of one dtype
  const float* lse;            // (images, H, S): the rows' log-sum-exp, or null
  float* sums;                 // (images, H, kSumChunks, S), contiguous: column sums of softmax(scale * Q K^T)
  int64_t query_image, query_head, query_token;
  int64_t key_image, key_head, key_token;
  int64_t lse_image, lse_head;
  // Null, or where each of the images lies that are packed along one axis of tokens, and the order to take them in. The
  // strides `_image` are then not used, and the sums of an image of n cells, (H, kSumChunks, n), begin at its first
  // cell times H * kSumChunks.
  const Sequence* sequences;
  const int32_t* order;
  int32_t group;  // cells, rows of queries and keys, to a token
  int64_t images;
  int64_t all_cells;  // of all images
  int32_t S;          // cells of each image; where they are packed, the most that any has
  int32_t H, D;
  float scale;
  bool wide;  // every row of queries and keys starts at a multiple of 16 bytes and is as long
  // The plan.
  int32_t one_pass_tokens;  // sequences of up to so many tokens are done in one pass, unless lse is given
  int32_t block_chunks;     // chunks of one head that a block sums; of a shorter image it sums more
};

}  // namespace visionzip::cuda
