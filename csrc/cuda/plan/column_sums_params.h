// What one launch of the column-sums kernel is given.  Plain data; no torch and no CUDA header.
#pragma once

#include "cuda/plan/column_sums_plan.h"
#include "cuda/plan/query_key.h"

namespace visionzip::cuda {

// The problem, the tensors and the plan, whole, as in ZipParams.  The sums of packed images, (H, kSumChunks, n) of an
// image of n cells, begin at its first cell times H * kSumChunks.
struct ColumnSumsParams : ColumnSumsProblem, QueryKeyTensors, ColumnSumsTiling {
  float* sums;  // (images, H, kSumChunks, S), contiguous: column sums of softmax(scale * Q K^T).  Where
                // `sliced`, behind them (images, H, S): what is subtracted in exponents, and the inverse sum
  bool wide;    // queries and keys are
};

// sums: plan.sums_bytes of device memory.
inline ColumnSumsParams make_column_sums_params(const ColumnSumsProblem& problem, const ColumnSumsPlan& plan,
                                                const QueryKeyTensors& tensors, float* sums) {
  return {problem, tensors, plan.tiling, sums, tensors.wide_queries && tensors.wide_keys};
}

}  // namespace visionzip::cuda
