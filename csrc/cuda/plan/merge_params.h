// What one launch of the merge kernels is given.  There is nothing to plan: a block makes one row.  Plain data; no
// torch and no CUDA header.
#pragma once

#include "common/types.h"
#include "cuda/plan/sequences.h"

namespace visionzip::cuda {

// A merged row's sum is formed of partial sums of so many tokens, in ascending order, and of those in order.
constexpr int kSegment = 16;

struct MergeProblem {
  DType dtype;
  MergeMode mode;
  int64_t B;         // images
  int64_t S, k, m;   // of each image; not used where they are packed
  int64_t C;         // channels
  int64_t all_rows;  // k + m of all images
};

// Strides in elements.  Rows of `in` are inner-contiguous; `out` is contiguous.  Where images are packed along one
// axis, `in` and `out` have two dimensions, and `assignment` one.
struct MergeTensors {
  const void* in;             // merge: (B, S, C).  merge_backward: (B, k + m, C)
  void* out;                  // merge: (B, k + m, C).  merge_backward: (B, S, C)
  const int64_t* assignment;  // (B, S), contiguous
  int64_t image_stride, row_stride;
  const Sequence* sequences;  // null, or where each of the packed images lies
};

struct MergeParams : MergeProblem, MergeTensors {};

}  // namespace visionzip::cuda
