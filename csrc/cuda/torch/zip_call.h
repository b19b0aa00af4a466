// What the operators on batches and on packed images share: one call of the fused kernel, or of the launches that take
// its place where images are large, with the column sums before it where all queries score.  An operator describes it;
// then it is planned, and launched.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "cuda/plan/zip_params.h"

namespace visionzip::cuda {

using torch::stable::Tensor;

struct ZipCall {
  const char* op;
  ZipProblem problem;
  ZipTensors tensors;
  // What the tensors' pointers point into.
  Tensor keys;
  std::optional<Tensor> attn{}, queries{}, lse{};
  Tensor indices, assignment;
};

// Every row of x starts at a multiple of 16 bytes and is a multiple of 16 bytes long.
bool is_wide(const Tensor& x);

// Whether the fused kernel can make output rows of hidden, (B, S, C), or (T, C) where images are packed; merge can
// always do it after the decision.
bool can_merge_in_kernel(const ZipCall& call, const Tensor& hidden);

// The call that makes output rows of hidden as well: those of tokens.
ZipCall with_hidden(ZipCall call, const Tensor& hidden, const Tensor& tokens, MergeMode mode);

// Throws std::runtime_error where no launch can be so large.
ZipPlan plan_call(const ZipCall& call, int32_t device);

// Gpu::clusters of the GPU that x is on, for 1, 2, ... blocks.
std::vector<int64_t> clusters(const Tensor& x);

// plan: of the call's problem.
void launch_call(const ZipCall& call, const ZipPlan& plan, int32_t device);

}  // namespace visionzip::cuda
