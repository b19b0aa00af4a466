// What all phases of one image share: the block's place in the team, and the arrays in shared memory.
#pragma once

#include "ptx.cuh"
#include "team.h"
#include "vector16.cuh"
#include "warp.cuh"
#include "zip_params.h"

namespace visionzip::cuda {

constexpr uint16_t kNone = 0xffff;  // in merged_into: kept, or a target
constexpr unsigned kHighest = ~0u;  // in scores: CLS
constexpr int kGroup = 8;           // lanes that work on one token's, or one target's, vector of channels

// T: element type of hidden, keys and queries.  kFromQueries: scores come from queries and keys, else from attn.
template <class T, bool kFromQueries, class Team>
struct ZipImage {
  static constexpr int kPer = kElements<T>;

  __device__ ZipImage(const ZipParams& params, char* shared, Team& its_team, int64_t image)
      : p(params), sm(shared), team(its_team), b(image) {
    const int chunk = chunk_tokens(p.S);
    first_token = team.rank * p.block_tokens;
    own_tokens = max(0, min(p.block_tokens, p.S - first_token));
    first_chunk = first_token / chunk;
    own_chunks = (own_tokens + chunk - 1) / chunk;
    remaining = p.S - p.k;
    step = static_cast<int>(target_step(remaining, p.m));
    tid = static_cast<int>(threadIdx.x);
    threads = static_cast<int>(blockDim.x);
    lane = tid % 32;
    warp = tid / 32;
    warps = threads / 32;
    sub = lane % kGroup;
  }

  template <class U>
  __device__ __forceinline__ U* at(int32_t offset) const {
    return reinterpret_cast<U*>(sm + offset);
  }

  // Valid once the selection stands.
  __device__ __forceinline__ int kept_before(int token) const {
    const unsigned below = (1u << (token % 32)) - 1;
    return static_cast<int>(at<unsigned>(p.at.kept_before)[token / 32] +
                            __popc(at<unsigned>(p.at.kept_bytes)[token / 32] & below));
  }
  __device__ __forceinline__ bool is_kept(int token) const {
    return at<unsigned>(p.at.kept_bytes)[token / 32] >> (token % 32) & 1;
  }
  // Number of the target that the remaining token number `rank` is, or -1.
  __device__ __forceinline__ int target_of_rank(int rank) const {
    if (p.m == 0 || rank % step) return -1;
    return rank / step < p.m ? rank / step : -1;
  }

  const ZipParams& p;
  char* const sm;
  Team& team;
  const int64_t b;
  int first_token, own_tokens;  // this block's slice of the tokens
  int first_chunk, own_chunks;  // and of the chunks of softmax statistics
  int remaining, step;
  int tid, threads, lane, warp, warps, sub;
};

}  // namespace visionzip::cuda
