// What an operator asks for: what all images of a call have in common, and what is each image's own.
#pragma once

#include "cpu/kernels/kernels.h"
#include "cpu/kernels/selection.h"
#include "cpu/plan/plan.h"

namespace visionzip::cpu {

// Strides in elements.
struct CallInputs {
  Problem problem;     // but for S, k and m
  KeyRows keys;        // but for the pointer
  AttentionRows attn;  // but for the pointer and S; not for kQueryKey
  int64_t query_head_stride, query_token_stride;
  float scale;
  int64_t lse_head_stride;
  DType dtype;  // of what is merged
  int64_t token_stride;
  MergeMode mode;
};

struct ImageInputs {
  int64_t S, k, m;
  const void *keys, *attn, *queries;
  const float* lse;         // or null
  int64_t* indices;         // (k): written where the call decides
  int64_t* assignment;      // (S): as well
  const int64_t* assigned;  // (S): the decision that is given where it does not
  const void* x;            // (S, C)
  void* out;                // (k + m, C)
  DecisionPlace place;
};

inline Problem problem_of(const CallInputs& call, const ImageInputs& image) {
  Problem problem = call.problem;
  problem.S = image.S;
  problem.k = image.k;
  problem.m = image.m;
  return problem;
}

}  // namespace visionzip::cpu
