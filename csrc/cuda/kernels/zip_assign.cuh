// Phase 4: the target that each of the block's tokens joins, by cosine similarity of metrics.
#pragma once

#include "cuda/kernels/metric.cuh"

namespace visionzip::cuda {

// What a metric is divided by to be a unit vector, given its lane's share of the squares; eight lanes a metric.
__device__ __forceinline__ float length_of(float square) {
  square = reduce<Sum, kTokenLanes>(square);
  return square == 0.f ? 1.f : sqrtf(square);
}

// Eight lanes a target: fetch its metric from whoever owns it, and divide it by its length; a target of length zero
// stays zero, and so does its similarity to everything.  Peers published theirs before the barrier of the scores.
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void load_targets(const ZipImage<T, kFromQueries, Team>& z, int first, int count) {
  const ZipParams& p = z.p;
  const float* metric = z.template at<float>(p.at.metric);
  for (int base = z.warp * 4; base < count; base += z.warps * 4) {
    const int t = base + z.lane / kTokenLanes, existing = min(t, count - 1);
    const int token = z.template at<uint16_t>(p.at.targets)[first + existing];
    float* to = z.template at<float>(p.at.target_metric) + static_cast<size_t>(existing) * p.Dp;
    float square = 0;
    for (int d = z.sub * 4; d < p.Dp; d += 4 * kTokenLanes) {
      const float4 x = z.team.metric4(metric, z.block_tokens, p.Dp, token, d);
      square = add_products(x, x, square);
      if (t < count) *reinterpret_cast<float4*>(to + d) = x;
    }
    const float length = length_of(square);
    for (int d = z.sub * 4; t < count && d < p.Dp; d += 4 * kTokenLanes) {
      *reinterpret_cast<float4*>(to + d) = divide(*reinterpret_cast<const float4*>(to + d), length);
    }
  }
}

struct Best {
  unsigned similarity;  // in the order of `ordered`
  int target;
};

__device__ __forceinline__ Best better(Best a, Best b) {
  return b.similarity > a.similarity || (b.similarity == a.similarity && b.target < a.target) ? b : a;
}

// Of a token's eight lanes.
__device__ __forceinline__ Best best_of_lanes(Best best) {
#pragma unroll
  for (int o = kTokenLanes / 2; o; o >>= 1) {
    best = better(best, {__shfl_xor_sync(kAllLanes, best.similarity, o), __shfl_xor_sync(kAllLanes, best.target, o)});
  }
  return best;
}

// One token (eight lanes) against a tile of targets, eight at a time: lane `sub` ends up with targets sub, sub + 8, ...
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ Best nearest_in_tile(const ZipImage<T, kFromQueries, Team>& z, const float* metric,
                                                bool wanted, int first, int count) {
  const ZipParams& p = z.p;
  Best best{0, 0x7fffffff};
  for (int g = 0; g < count; g += 8) {
    float dot[8] = {};
    if (wanted) {
      for (int d = z.sub * 4; d < p.Dp; d += 4 * kTokenLanes) {
        const float4 a = *reinterpret_cast<const float4*>(metric + d);
#pragma unroll
        for (int q = 0; q < 8; q++) {
          if (g + q >= count) continue;
          const float* target = z.template at<float>(p.at.target_metric) + static_cast<size_t>(g + q) * p.Dp;
          dot[q] = add_products(a, *reinterpret_cast<const float4*>(target + d), dot[q]);
        }
      }
    }
    const float similarity = eight_sums(dot, z.sub);
    const int t = g + z.sub;
    if (t < count) best = better(best, {ordered(similarity), first + t});
  }
  return best_of_lanes(best);
}

template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void assign_tile(const ZipImage<T, kFromQueries, Team>& z, int first, int count) {
  const ZipParams& p = z.p;
  uint16_t* joined = z.template at<uint16_t>(p.at.merged_into);
  // The similarity to the target joined so far, kept where the token's score was: that has done its work.
  unsigned* similarities = z.template at<unsigned>(p.at.scores);
  for (int base = z.warp * 4; base < z.own_tokens; base += z.warps * 4) {
    const int local = base + z.lane / kTokenLanes, token = z.first_token + local;
    const bool exists = local < z.own_tokens;
    const bool wanted = exists && !z.is_selected(token) && z.target_of_rank(token - z.selected_before(token)) < 0;
    Best best{0, kNone};
    if (__any_sync(kAllLanes, wanted)) {
      const float* metric = z.template at<float>(p.at.metric) + static_cast<size_t>(local) * p.Dp;
      best = nearest_in_tile(z, metric, wanted, first, count);
    }
    if (!exists || z.sub != 0) continue;
    if (wanted && first > 0) best = better({similarities[token], joined[token]}, best);
    joined[token] = wanted ? static_cast<uint16_t>(best.target) : kNone;
    if (first + count < z.m) similarities[token] = best.similarity;
  }
}

// Ends with the first half of a team barrier: `team.wait(); team.fetch(merged_into)` follow when they are needed.
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void assign_tokens(const ZipImage<T, kFromQueries, Team>& z) {
  for (int first = 0; first < z.m; first += kTargetTile) {
    if (first > 0) __syncthreads();  // the last tile has been used
    const int count = min(kTargetTile, z.m - first);
    load_targets(z, first, count);
    __syncthreads();
    assign_tile(z, first, count);
  }
  __syncthreads();
  z.team.spread(z.template at<uint16_t>(z.p.at.merged_into), z.first_token, z.own_tokens);
  z.team.arrive();
}

// The decision on an image that is left without rows, as only packed ones may be.
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void drop_image(const ZipImage<T, kFromQueries, Team>& z) {
  for (int x = z.tid; x < z.own_tokens; x += z.threads) z.p.assignment[z.image_token + z.first_token + x] = -1;
}

// The block's own tokens' part of the outputs; needs no peer.
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void write_decision(const ZipImage<T, kFromQueries, Team>& z) {
  const ZipParams& p = z.p;
  for (int x = z.tid; x < z.own_tokens; x += z.threads) {
    const int token = z.first_token + x, before = z.selected_before(token);
    int64_t row;
    if (z.is_selected(token)) {
      row = z.row_of_selected(before);
      if (row >= 0) p.indices[z.image_kept + row] = z.first_number + token;
    } else {
      const int t = z.target_of_rank(token - before);
      row = t >= 0 ? z.k + t : z.m ? z.k + z.template at<uint16_t>(p.at.merged_into)[token] : -1;
    }
    p.assignment[z.image_token + token] = row < 0 ? row : z.first_row_number + row;
  }
}

}  // namespace visionzip::cuda
