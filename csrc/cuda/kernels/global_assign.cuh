// The launches that assign: targets' metrics become unit vectors, and each token of the rest joins the nearest target.
#pragma once

#include "cuda/kernels/global_slice.cuh"
#include "cuda/kernels/zip_assign.cuh"

namespace visionzip::cuda {

// Of the targets of an image as of its tokens, a slice takes kSliceTokens: eight lanes a target.
__global__ void __launch_bounds__(kSliceThreads, 1) global_targets_kernel(const __grid_constant__ GlobalParams p) {
  SliceTeam team;
  for (int64_t slice = blockIdx.x; slice < p.slices; slice += gridDim.x) {
    const Slice<> z(p, team, slice);
    const int end = min(z.m, z.first_token + kSliceTokens);
    const int64_t image_target = z.image_row - z.image_kept;
    for (int base = z.first_token + z.warp * 4; base < end; base += z.warps * 4) {
      const int own = base + z.lane / kTokenLanes, t = min(own, end - 1);
      const float* metric = z.metric(scratch_at<const int>(p, p.lies.targets)[image_target + t]);
      float* to = scratch_at<float>(p, p.lies.target_metric) + (image_target + t) * p.Dp;
      float square = 0;
      for (int d = z.sub * 4; d < p.Dp; d += 4 * kTokenLanes) {
        const float4 x = *reinterpret_cast<const float4*>(metric + d);
        square = add_products(x, x, square);
      }
      const float length = length_of(square);
      for (int d = z.sub * 4; own < end && d < p.Dp; d += 4 * kTokenLanes) {
        *reinterpret_cast<float4*>(to + d) = divide(*reinterpret_cast<const float4*>(metric + d), length);
      }
    }
  }
}

// The nearest of the image's targets to each of kLaneTokens tokens, whose metrics are given: eight targets at a time,
// of which lane `sub` ends up with targets sub, sub + 8, ...
__device__ __forceinline__ void find_nearest(const Slice<>& z, const float* const (&metrics)[kLaneTokens],
                                             const float* targets, Best (&best)[kLaneTokens]) {
  const int Dp = z.p.Dp;
  for (int first = 0; first < z.m; first += 8) {
    float dot[kLaneTokens][8] = {};
    for (int d = z.sub * 4; d < Dp; d += 4 * kTokenLanes) {
      float4 metric[kLaneTokens];
#pragma unroll
      for (int i = 0; i < kLaneTokens; i++) metric[i] = *reinterpret_cast<const float4*>(metrics[i] + d);
#pragma unroll
      for (int q = 0; q < 8; q++) {  // the last again where there are fewer: no load waits for a branch
        const auto* target = targets + static_cast<int64_t>(min(first + q, z.m - 1)) * Dp;
        const float4 x = *reinterpret_cast<const float4*>(target + d);
#pragma unroll
        for (int i = 0; i < kLaneTokens; i++) dot[i][q] = add_products(metric[i], x, dot[i][q]);
      }
    }
#pragma unroll
    for (int i = 0; i < kLaneTokens; i++) {
      const float similarity = eight_sums(dot[i], z.sub);
      const int t = first + z.sub;
      if (t < z.m) best[i] = better(best[i], {ordered(similarity), t});
    }
  }
}

__global__ void __launch_bounds__(kSliceThreads, 1) global_assign_kernel(const __grid_constant__ GlobalParams p) {
  SliceTeam team;
  for (int64_t slice = blockIdx.x; slice < p.slices; slice += gridDim.x) {
    const Slice<> z(p, team, slice);
    const int count = z.S - z.selected() - z.m, first = z.first_token;
    if (z.m == 0 || z.first_token >= count) continue;
    const int* rest = scratch_at<const int>(p, p.lies.rest) + z.image_token;
    const float* targets = scratch_at<const float>(p, p.lies.target_metric) + (z.image_row - z.image_kept) * p.Dp;
    const float* metrics[kLaneTokens];
    Best best[kLaneTokens];
#pragma unroll
    for (int i = 0; i < kLaneTokens; i++) {
      metrics[i] = z.metric(rest[min(first + z.token_of_lanes(i), count - 1)]);
      best[i] = {0, 0x7fffffff};
    }
    find_nearest(z, metrics, targets, best);
#pragma unroll
    for (int i = 0; i < kLaneTokens; i++) {
      const int target = best_of_lanes(best[i]).target, x = first + z.token_of_lanes(i);
      if (z.sub == 0 && x < count) p.assignment[z.image_token + rest[x]] = z.first_row_number + z.k + target;
    }
  }
}

}  // namespace visionzip::cuda
