// The arithmetic of the policy "distinct": what the fused kernel and the launches over global memory share.
#pragma once

#include "cuda/kernels/metric.cuh"

namespace visionzip::cuda {

// A token that may be taken: the order of its gain above the complement of its number, so that of equal gains the lower
// token is the highest candidate.
using Candidate = unsigned long long;

constexpr Candidate kNobody = 0;

__device__ __forceinline__ Candidate make_candidate(unsigned gain, unsigned complement) {
  return Candidate{gain} << 32 | complement;
}

__device__ __forceinline__ int token_of(Candidate candidate) {
  return static_cast<int>(~static_cast<unsigned>(candidate));
}

// score: in the order of `ordered`; of what is selected already, kHighest.
__device__ __forceinline__ Candidate candidate_of(unsigned score, float resemblance, int token) {
  if (score == kHighest) return kNobody;
  return make_candidate(ordered(unordered(score) * (1.f - resemblance)), ~static_cast<unsigned>(token));
}

// A metric's length, given its product with itself; infinite where it has no direction, being zero or not finite:
// divided by that, it resembles nothing.
__device__ __forceinline__ float length_or_infinity(float square) {
  const float length = sqrtf(square);
  return length > 0 && length < INFINITY ? length : INFINITY;
}

// A token after one more was taken: product is that of its metric with the taken one's unit vector.  At the start
// nothing is resembled, and product is that of its metric with itself.  A similarity that is NaN counts as 0.
__device__ __forceinline__ void compare(bool starts, float product, float& length, float& resemblance) {
  if (starts) {
    length = length_or_infinity(product);
    resemblance = 0;
  } else {
    resemblance = fminf(1.f, fmaxf(resemblance, product / length));
  }
}

}  // namespace visionzip::cuda
