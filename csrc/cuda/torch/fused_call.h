// What the operators on batches and on packed images share: one call of the fused kernel, with the column sums before
// it where all queries score.  Described by an operator, then planned, then launched.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "cuda/plan/column_sums_plan.h"
#include "cuda/plan/zip_plan.h"

namespace visionzip::cuda {

using torch::stable::Tensor;

// The tensors that the parameters point into, and what has been found out so far.
struct FusedCall {
  const char* op;
  Tensor keys;
  std::optional<Tensor> attn{}, queries{}, lse{};
  ZipParams params{};
  ColumnSumsParams sums{};  // where all queries score
  bool has_cls = false;
  double scale = 0;

  bool all_queries_score() const { return queries && !has_cls; }
};

struct FusedPlan {
  ZipPlan zip;
  ColumnSumsPlan sums;
};

// Every row of x starts at a multiple of 16 bytes and is a multiple of 16 bytes long.
bool is_wide(const Tensor& x);

// The call's attention becomes the column sums by head and chunk of queries: an image's rows as those of any attention
// matrix.  What its parameters say of queries moves to the column sums.  query_token: the stride of queries.
void describe_column_sums(FusedCall& call, int64_t query_token);

// None where the problem does not fit the kernels.
std::optional<FusedPlan> plan_fused(FusedCall& call, const Gpu& gpu);

void launch_fused(FusedCall& call, const FusedPlan& plan, int32_t device);

Gpu current_gpu(const char* op, int32_t device);

}  // namespace visionzip::cuda
