// The launches of the policy "distinct": one for each token that is taken, and a last one.  Each notes what the one
// before has taken, finds its slice's tokens' similarities to that, and offers its slice's best token.
#pragma once

#include "cuda/kernels/distinct.cuh"
#include "cuda/kernels/global_slice.cuh"

namespace visionzip::cuda {

// The metrics that a thread's lanes work on; the last again where there are fewer: no load waits for a branch.
struct LaneMetrics {
  const float* of[kLaneTokens];

  __device__ __forceinline__ explicit LaneMetrics(const Slice<>& z) {
#pragma unroll
    for (int i = 0; i < kLaneTokens; i++) {
      const int local = min(z.token_of_lanes(i), z.own_tokens - 1);
      of[i] = z.at<float>(z.p.at.metric) + static_cast<int64_t>(local) * z.p.Dp;
    }
  }
};

// Each token's length; nothing is close to it yet.
__device__ __forceinline__ void measure(const Slice<>& z, float* lengths, float* closeness) {
  const LaneMetrics metrics(z);
#pragma unroll
  for (int i = 0; i < kLaneTokens; i++) {
    const float length = length_or_infinity(multiply(metrics.of[i], metrics.of[i], z.p.Dp, z.sub));
    if (z.sub != 0 || z.token_of_lanes(i) >= z.own_tokens) continue;
    lengths[z.token_of_lanes(i)] = length;
    closeness[z.token_of_lanes(i)] = 0;
  }
}

// How close each token is once that one, whose metric is given, has been taken.
__device__ __forceinline__ void compare(const Slice<>& z, const float* taken, float taken_length, const float* lengths,
                                        float* closeness) {
  const LaneMetrics metrics(z);
  float sum[kLaneTokens] = {};
  for (int d = z.sub * 4; d < z.p.Dp; d += 4 * kTokenLanes) {
    const float4 unit = divide(*reinterpret_cast<const float4*>(taken + d), taken_length);
#pragma unroll
    for (int i = 0; i < kLaneTokens; i++) {
      sum[i] = add_products(*reinterpret_cast<const float4*>(metrics.of[i] + d), unit, sum[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kLaneTokens; i++) {
    const float product = reduce<Sum, kTokenLanes>(sum[i]);
    if (z.sub != 0 || z.token_of_lanes(i) >= z.own_tokens) continue;
    float& own = closeness[z.token_of_lanes(i)];
    own = closer(own, product / lengths[z.token_of_lanes(i)]);
  }
}

// The slice's best token, for thread 0.
__device__ __forceinline__ Candidate best_of_slice(const Slice<>& z, const unsigned* scores, const float* closeness,
                                                   Candidate* of_warps) {
  Candidate best = kNobody;
#pragma unroll
  for (int i = 0; i < kLaneTokens; i++) {
    const int local = z.token_of_lanes(i);
    if (z.sub != 0 || local >= z.own_tokens) continue;
    best = max(best, candidate_of(scores[local], closeness[local], z.first_token + local));
  }
  best = reduce_max(best);
  if (z.lane == 0) of_warps[z.warp] = best;
  __syncthreads();
  best = reduce_max(z.lane < z.warps ? of_warps[z.lane] : kNobody);
  __syncthreads();  // before the next slice's are written
  return best;
}

__global__ void __launch_bounds__(kSliceThreads, 1) global_distinct_kernel(const __grid_constant__ DistinctParams p) {
  __shared__ Candidate of_warps[kSliceThreads / 32];
  SliceTeam team;
  for (int64_t slice = blockIdx.x; slice < p.slices; slice += gridDim.x) {
    const Slice<> z(p, team, slice);
    const int count = z.selected() - p.has_cls;
    if (z.is_empty() || p.step > count) continue;
    const int64_t first = z.image_token + z.first_token;
    unsigned* scores = scratch_at<unsigned>(p, p.lies.scores) + first;
    float* lengths = scratch_at<float>(p, p.lies.lengths) + first;
    float* closeness = scratch_at<float>(p, p.lies.closeness) + first;
    Candidate* of_steps = scratch_at<Candidate>(p, p.lies.taken) + z.image_kept;
    const int taken = p.step > 0 ? token_of(of_steps[p.step - 1]) : -1, local = taken - z.first_token;
    if (z.tid == 0 && local >= 0 && local < z.own_tokens) scores[local] = kHighest;
    if (p.step == count) continue;
    if (taken < 0) {
      measure(z, lengths, closeness);
    } else {
      const float length = scratch_at<const float>(p, p.lies.lengths)[z.image_token + taken];
      compare(z, z.metric(taken), length, lengths, closeness);
    }
    __syncthreads();  // the taken token's score
    const Candidate best = best_of_slice(z, scores, closeness, of_warps);
    if (z.tid == 0) atomicMax(&of_steps[p.step], best);
  }
}

}  // namespace visionzip::cuda
