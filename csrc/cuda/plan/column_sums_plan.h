// How the column-sums kernel is launched for a problem on a GPU.  Host code without torch and CUDA.
#pragma once

#include <string>

#include "cuda/plan/column_sums_problem.h"
#include "cuda/plan/gpu.h"

namespace visionzip::cuda {

// What the kernel reads of a plan.  Nothing in the sums depends on it, except that the longest sequence that one pass
// serves is a matter of D, the element and the GPU.
struct ColumnSumsTiling {
  int32_t one_pass_tokens;  // sequences of up to so many tokens are done in one pass, unless the log-sum-exp is given
  int32_t block_chunks;     // chunks of one head that a block sums; of a shorter image it sums more
  bool sliced;              // channels come in slices, for heads that shared memory has no room for

  bool operator==(const ColumnSumsTiling&) const = default;
};

struct ColumnSumsPlan {
  int32_t blocks, threads, shared_bytes;
  int64_t sums_bytes;  // where `sliced`, statistics of softmax included
  ColumnSumsTiling tiling;
  std::string why;  // a sentence: how

  bool operator==(const ColumnSumsPlan&) const = default;
};

// forced_chunks: of a head, that a block sums, 1, 2, 4 or 8; 0: as many as are best.
ColumnSumsPlan plan_column_sums(const ColumnSumsProblem& problem, const Gpu& gpu, int32_t forced_chunks = 0);

}  // namespace visionzip::cuda
