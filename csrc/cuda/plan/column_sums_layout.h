// Shared memory of the column-sums kernel: what the block works on; statistics; rows.  Known to the plan, which counts
// it, and to the kernel.
#pragma once

#include "common/rounding.h"
#include "cuda/plan/column_sums_problem.h"

namespace visionzip::cuda {

constexpr int kMostWarps = 16;  // of a block: with more, a thread would have too few registers
constexpr int kMostHeadChannels = 256;

// Heads that do not fit are read so many channels at a time, by blocks of so many warps.
constexpr int kSlicedChannels = 32;
constexpr int kSlicedWarps = 4;

constexpr int kHeadBytes = 128;

// Either the strips' statistics of two tiles, or those of kRowBlock queries: pairs of floats.  An odd number of pairs
// from query to query.
constexpr int kStatPitch = kMostWarps | 1;
constexpr int kStatBytes = 8 * (2 * kTileQueries * kStatPitch > kRowBlock ? 2 * kTileQueries * kStatPitch : kRowBlock);

// Rows of queries and keys: 16-byte units, and an odd number of them from row to row, so that eight rows' units of one
// number lie in different banks.
VISIONZIP_HOST_DEVICE inline constexpr int row_units(int channels, int element_bytes) {
  return ceil_divide(channels * element_bytes, 16);
}
VISIONZIP_HOST_DEVICE inline constexpr int row_pitch(int channels, int element_bytes) {
  return (row_units(channels, element_bytes) | 1) * 16;
}

}  // namespace visionzip::cuda
