// How the column-sums kernel is launched for a problem on a GPU.  Host code without torch and CUDA.
#pragma once

#include <string>

#include "cuda/plan/column_sums_params.h"
#include "cuda/plan/gpu.h"

namespace visionzip::cuda {

struct ColumnSumsPlan {
  bool possible;  // false: the decision comes from the reference
  int32_t blocks, threads, shared_bytes;
  int64_t sums_bytes;
  std::string why;  // a sentence: how, or why not
};

// Fills in the plan's part of `params` (the problem's part is set).  Nothing in the sums depends on it, except that
// the longest sequence that one pass serves is a matter of D, the element and the GPU.
ColumnSumsPlan plan_column_sums(ColumnSumsParams& params, int32_t element_bytes, const Gpu& gpu);

}  // namespace visionzip::cuda
