// The launches of the policy "distinct": one for each token that is taken, and a last one.  In each, a block notes what
// the launch before has taken, compares its slice's tokens with that, and offers the best of them.
#pragma once

#include "cuda/kernels/distinct.cuh"
#include "cuda/kernels/global_slice.cuh"

namespace visionzip::cuda {

// The slice's best token, for all threads, once its tokens have been compared with the one that was taken, or, where
// there is none, measured.  Eight lanes work on kLaneTokens tokens; on the last again where there are fewer: no load
// waits for a branch.
__device__ __forceinline__ Candidate best_of_slice(const Slice<>& z, const float* taken, float taken_length,
                                                   Candidate* of_warps) {
  const GlobalParams& p = z.all;
  const float* metrics = z.at<float>(p.at.metric);
  float sum[kLaneTokens] = {};
  for (int d = z.sub * 4; d < p.Dp; d += 4 * kTokenLanes) {
    float4 unit{};
    if (taken) unit = divide(*reinterpret_cast<const float4*>(taken + d), taken_length);
#pragma unroll
    for (int i = 0; i < kLaneTokens; i++) {
      const auto local = static_cast<int64_t>(min(z.token_of_lanes(i), z.own_tokens - 1));
      const float4 x = *reinterpret_cast<const float4*>(metrics + local * p.Dp + d);
      sum[i] = add_products(x, taken ? unit : x, sum[i]);
    }
  }
  const int64_t first = z.image_token + z.first_token;
  Candidate best = kNobody;
#pragma unroll
  for (int i = 0; i < kLaneTokens; i++) {
    const float product = reduce<Sum, kTokenLanes>(sum[i]);
    const int local = z.token_of_lanes(i);
    if (z.sub != 0 || local >= z.own_tokens) continue;
    float& resemblance = scratch_at<float>(p, p.lies.resemblance)[first + local];
    compare(!taken, product, scratch_at<float>(p, p.lies.lengths)[first + local], resemblance);
    const unsigned score = scratch_at<unsigned>(p, p.lies.scores)[first + local];
    best = max(best, candidate_of(score, resemblance, z.first_token + local));
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
    Candidate* of_steps = scratch_at<Candidate>(p, p.lies.taken) + z.image_kept;
    const float* metric = nullptr;
    float length = 0;
    if (p.step > 0) {
      const int taken = token_of(of_steps[p.step - 1]), local = taken - z.first_token;
      metric = z.metric(taken);
      length = scratch_at<const float>(p, p.lies.lengths)[z.image_token + taken];
      if (z.tid == 0 && local >= 0 && local < z.own_tokens) {
        scratch_at<unsigned>(p, p.lies.scores)[z.image_token + taken] = kHighest;
      }
      __syncthreads();
    }
    if (p.step == count) continue;
    const Candidate best = best_of_slice(z, metric, length, of_warps);
    if (z.tid == 0) atomicMax(&of_steps[p.step], best);
  }
}

}  // namespace visionzip::cuda
