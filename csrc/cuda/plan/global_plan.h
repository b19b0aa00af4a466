// The path for images of any size: several launches, which decide over arrays in global memory.  Their results have the
// bits of the fused kernel's.  Host code without torch and CUDA.
#pragma once

#include "cuda/plan/zip_plan.h"

namespace visionzip::cuda {

// A block works on a slice of so many tokens of one image: on whole chunks of softmax statistics.
constexpr int kSliceTokens = 128;
constexpr int kSliceThreads = 256;

// Bytes from the start of scratch memory.  Arrays over tokens, or targets, are those of all images, in order.
struct GlobalLayout {
  int64_t records;       // of each slice what the fused kernel's blocks hold in shared memory: ZipTiling::at
  int64_t record_bytes;  // from one slice to the next
  int64_t column_sums;   // float (attn_heads, tokens): of each head's attention, where several rows are averaged
  int64_t head_stats;    // float2 (images, H): of CLS's softmax
  int64_t scores;        // uint32 (tokens), in the order of `ordered`
  // Of the policy "distinct":
  int64_t lengths;      // float (tokens), as in shared memory
  int64_t resemblance;  // float (tokens), likewise
  int64_t taken;        // uint64 (kept): of each step the best candidate
  int64_t taken_bytes;
  int64_t targets;        // int32 (targets): each one's token
  int64_t target_metric;  // float (targets, Dp), unit vectors
  int64_t rest;           // int32 (tokens): of each image the tokens that are neither kept nor targets
  int64_t total;
};

// Of images of one size an image begins a slice.  Of packed ones image i begins with slice first_token / kSliceTokens +
// i: found without a list of them, and at most one slice an image stays empty.
int64_t count_slices(const ZipProblem& problem);

// Dp is that of ZipTiling.
GlobalLayout make_global_layout(const ZipProblem& problem, const ZipTiling& tiling);

// why: this path and no other; a sentence.
ZipPlan plan_global(const ZipProblem& problem, const std::string& why);

}  // namespace visionzip::cuda
