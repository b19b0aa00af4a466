// The policy "distinct", before phase 3: tokens are taken one after another, each the one of highest score times what
// no taken token's key resembles.  A taken token gets the highest score, by which phase 3 selects it.
//
// Each block compares its own tokens with the last that was taken; a step is one barrier of the team, at which the
// blocks offer their best tokens to each other.  The sum of a similarity has the shape of phase 4's.
#pragma once

#include "cuda/kernels/distinct.cuh"

namespace visionzip::cuda {

// Each of the block's tokens is compared with the last that was taken, or, at the start, measured.  Returns the best of
// those that the lane has seen.
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ Candidate best_of_lane(const ZipImage<T, kFromQueries, Team>& z, bool starts) {
  const ZipParams& p = z.p;
  const float* unit = z.template at<float>(p.at.unit);
  Candidate best = kNobody;
#pragma unroll 1
  for (int base = z.warp * 4; base < z.own_tokens; base += z.warps * 4) {
    const int own = base + z.lane / kTokenLanes, local = min(own, z.own_tokens - 1);
    const float* metric = z.template at<float>(p.at.metric) + static_cast<size_t>(local) * p.Dp;
    const float product = multiply(metric, starts ? metric : unit, p.Dp, z.sub);
    if (own >= z.own_tokens || z.sub != 0) continue;
    float& resemblance = z.template at<float>(p.at.resemblance)[local];
    compare(starts, product, z.template at<float>(p.at.lengths)[local], resemblance);
    const int token = z.first_token + local;
    best = max(best, candidate_of(z.template at<unsigned>(p.at.scores)[token], resemblance, token));
  }
  return best;
}

template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ Candidate best_of_block(const ZipImage<T, kFromQueries, Team>& z, bool starts) {
  Candidate* of_warps = z.template at<Candidate>(z.p.at.of_warps);
  const Candidate best = reduce_max(best_of_lane(z, starts));
  if (z.lane == 0) of_warps[z.warp] = best;
  __syncthreads();
  return reduce_max(z.lane < z.warps ? of_warps[z.lane] : kNobody);
}

struct Taken {
  int token;
  float length;  // of its metric
};

// The best of all blocks' tokens, given the own block's.  Offers of two steps lie beside each other: a quick block
// makes the next one while a slow one still reads.
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
  auto* words = reinterpret_cast<unsigned*>(offers);
  z.team.spread(words, 4 * z.team.rank, 4);
  z.team.arrive();
  z.team.wait();
  Candidate best = kNobody;
  float length = 0;
#pragma unroll 1
  for (int b = z.lane; b < p.team_blocks; b += 32) {
    const uint4 offer = z.team.read(offers, b);
    const Candidate candidate = make_candidate(offer.y, offer.x);
    if (candidate <= best) continue;
    best = candidate;
    length = __uint_as_float(offer.z);
  }
  const Candidate highest = reduce_max(best);
  const unsigned winners = __ballot_sync(kAllLanes, best == highest);  // one lane
  return {token_of(highest), __shfl_sync(kAllLanes, length, __popc(winners - 1))};
}

// The taken token's metric as a unit vector.
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void load_unit(const ZipImage<T, kFromQueries, Team>& z, const Taken& taken) {
  const ZipParams& p = z.p;
  const float* metric = z.template at<float>(p.at.metric);
#pragma unroll 1
  for (int d = z.tid * 4; d < p.Dp; d += z.threads * 4) {
    const float4 x = z.team.metric4(metric, z.block_tokens, p.Dp, taken.token, d);
    *reinterpret_cast<float4*>(z.template at<float>(p.at.unit) + d) = divide(x, taken.length);
  }
}

// Peers' metrics are not read after the last barrier: they may be gone by then.
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void take_distinct(const ZipImage<T, kFromQueries, Team>& z) {
  const int count = z.selected() - z.p.has_cls;
  Taken taken{};
#pragma unroll 1
  for (int step = 0; step < count; step++) {
    if (step > 0) load_unit(z, taken);
    __syncthreads();  // the unit vector, and the taken token's score
    taken = best_of_team(z, step, best_of_block(z, step == 0));
    if (z.tid == 0) z.template at<unsigned>(z.p.at.scores)[taken.token] = kHighest;
  }
  __syncthreads();
}

}  // namespace visionzip::cuda
