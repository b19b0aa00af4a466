// The policy "distinct", before phase 3: tokens are taken one after another, each the one with the highest score times
// what no taken token's key resembles.  A taken token gets the highest score, by which phase 3 selects it.
//
// Each block knows its own tokens' lengths and closeness; a step is one barrier of the team, at which the blocks offer
// their best tokens to each other.  The sum of a similarity has the shape of phase 4's.
#pragma once

#include "cuda/kernels/distinct.cuh"

namespace visionzip::cuda {

// For each of the block's tokens, eight lanes: lane 0 of them has f(local, metric), the token's closeness.  Returns
// the candidate of highest gain that the lane has seen.
template <class T, bool kFromQueries, class Team, class F>
__device__ __forceinline__ Candidate best_of_tokens(const ZipImage<T, kFromQueries, Team>& z, F&& f) {
  const ZipParams& p = z.p;
  const float* metrics = z.template at<float>(p.at.metric);
  Candidate best = kNobody;
  for (int base = z.warp * 4; base < z.own_tokens; base += z.warps * 4) {
    const int own = base + z.lane / kTokenLanes, local = min(own, z.own_tokens - 1);
    const float closeness = f(local, metrics + static_cast<size_t>(local) * p.Dp, own < z.own_tokens && z.sub == 0);
    if (own >= z.own_tokens || z.sub != 0) continue;
    const int token = z.first_token + local;
    best = max(best, candidate_of(z.template at<unsigned>(p.at.scores)[token], closeness, token));
  }
  return best;
}

// The best of all lanes of the block.
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ Candidate best_of_block(const ZipImage<T, kFromQueries, Team>& z, Candidate best) {
  Candidate* of_warps = z.template at<Candidate>(z.p.at.of_warps);
  best = reduce_max(best);
  if (z.lane == 0) of_warps[z.warp] = best;
  __syncthreads();
  return reduce_max(z.lane < z.warps ? of_warps[z.lane] : kNobody);
}

struct Taken {
  int token;
  float length;  // of its metric
};

// The best of all blocks' candidates.  Offers of two steps lie beside each other: a quick block makes the next one
// while a slow one still reads.
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ Taken best_of_team(const ZipImage<T, kFromQueries, Team>& z, int step, Candidate own) {
  const ZipParams& p = z.p;
  uint4* offers = z.template at<uint4>(p.at.offers) + step % 2 * p.team_blocks;
  if (z.tid == 0) {
    const float length = own == kNobody ? 0.f : z.template at<float>(p.at.lengths)[token_of(own) - z.first_token];
    offers[z.team.rank] =
        make_uint4(static_cast<unsigned>(own), static_cast<unsigned>(own >> 32), __float_as_uint(length), 0);
  }
  __syncthreads();
  z.team.spread(offers, z.team.rank, 1);
  z.team.arrive();
  z.team.wait();
  z.team.fetch(offers, p.team_blocks);
  Candidate best = kNobody;
  for (int b = z.lane; b < p.team_blocks; b += 32) best = max(best, make_candidate(offers[b].y, offers[b].x));
  const int token = token_of(reduce_max(best));
  return {token, __uint_as_float(offers[token / z.block_tokens].z)};
}

// The taken token as a unit vector, for the block.
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void load_unit(const ZipImage<T, kFromQueries, Team>& z, const Taken& taken) {
  const ZipParams& p = z.p;
  const float* metric = z.template at<float>(p.at.metric);
  for (int d = z.tid * 4; d < p.Dp; d += z.threads * 4) {
    const float4 x = z.team.metric4(metric, z.block_tokens, p.Dp, taken.token, d);
    *reinterpret_cast<float4*>(z.template at<float>(p.at.unit) + d) = divide(x, taken.length);
  }
  __syncthreads();
}

template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void take_distinct(const ZipImage<T, kFromQueries, Team>& z) {
  const ZipParams& p = z.p;
  float* lengths = z.template at<float>(p.at.lengths);
  float* closenesses = z.template at<float>(p.at.closeness);
  const float* unit = z.template at<float>(p.at.unit);
  const int count = z.selected() - p.has_cls;
  Candidate best = best_of_tokens(z, [&](int local, const float* metric, bool stores) {
    const float length = length_or_infinity(multiply(metric, metric, p.Dp, z.sub));
    if (stores) {
      lengths[local] = length;
      closenesses[local] = 0;
    }
    return 0.f;
  });
  for (int step = 0; step < count; step++) {
    const Taken taken = best_of_team(z, step, best_of_block(z, best));
    if (z.tid == 0) z.template at<unsigned>(p.at.scores)[taken.token] = kHighest;
    if (step + 1 == count) break;
    load_unit(z, taken);
    best = best_of_tokens(z, [&](int local, const float* metric, bool stores) {
      const float product = multiply(metric, unit, p.Dp, z.sub);
      if (!stores) return 0.f;
      const float closeness = closer(closenesses[local], product / lengths[local]);
      closenesses[local] = closeness;
      return closeness;
    });
  }
  __syncthreads();
}

}  // namespace visionzip::cuda
