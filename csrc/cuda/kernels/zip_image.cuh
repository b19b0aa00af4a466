// What all phases of one image share: the block's place in the team, and the arrays in shared memory.
#pragma once

#include "cuda/kernels/ptx.cuh"
#include "cuda/kernels/team.h"
#include "cuda/kernels/vector16.cuh"
#include "cuda/kernels/warp.cuh"
#include "cuda/plan/zip_params.h"

namespace visionzip::cuda {

constexpr uint16_t kNone = 0xffff;  // in merged_into: selected, or a target
constexpr unsigned kHighest = ~0u;  // in scores: what is selected already, as CLS is
constexpr int kTokenLanes = 8;      // lanes that work on one token's, or one target's, vector of channels

// T: element type of hidden, keys and queries.  kFromQueries: scores come from queries and keys, else from attn.
template <class T, bool kFromQueries, class Team>
struct ZipImage {
  static constexpr int kPer = kElements<T>;

  // position: the image's number, or its place in `order` where that is given.
  __device__ ZipImage(const ZipParams& params, char* shared, Team& its_team, int64_t position)
      : p(params), sm(shared), team(its_team) {
    if (p.sequences) {
      const Sequence own = p.sequences[p.order ? p.order[position] : position];
      S = own.tokens;
      k = own.k;
      m = own.m;
      place_ = first_number = image_token = own.first_token;
      first_row_number = image_row = own.first_row;
      image_kept = own.first_kept;
    } else {
      S = p.S;
      k = p.k;
      m = p.m;
      place_ = position;
      first_number = first_row_number = 0;
      image_token = position * S;
      image_row = position * (k + m);
      image_kept = position * k;
    }
    const int chunk = chunk_tokens(S);
    chunks = chunks_of(S);
    words = ceil_divide(S, 32);
    block_tokens = block_tokens_of(S, p.team_blocks);
    first_token = team.rank * block_tokens;
    own_tokens = max(0, min(block_tokens, S - first_token));
    first_chunk = first_token / chunk;
    own_chunks = ceil_divide(own_tokens, chunk);
    step = static_cast<int>(target_step(S - selected(), m));
    tid = static_cast<int>(threadIdx.x);
    threads = static_cast<int>(blockDim.x);
    lane = tid % 32;
    warp = tid / 32;
    warps = threads / 32;
    sub = lane % kTokenLanes;
  }

  // Where the image begins in an input, given the stride of images there: of first tokens, where they are packed.
  __device__ __forceinline__ int64_t offset(int64_t image_stride) const { return place_ * image_stride; }

  template <class U>
  __device__ __forceinline__ U* at(int32_t offset) const {
    return reinterpret_cast<U*>(sm + offset);
  }

  // Tokens that do not remain: the kept ones, and CLS where it takes no row.
  __device__ __forceinline__ int selected() const { return k + rowless_tokens(p); }
  // The row of a selected token, of which so many are before it; -1 of CLS where it takes none.
  __device__ __forceinline__ int row_of_selected(int before) const { return before - rowless_tokens(p); }

  // Valid once tokens have been selected.
  __device__ __forceinline__ int selected_before(int token) const {
    const unsigned below = (1u << (token % 32)) - 1;
    return static_cast<int>(at<unsigned>(p.at.selected_before)[token / 32] +
                            __popc(at<unsigned>(p.at.selected_bitmap)[token / 32] & below));
  }
  __device__ __forceinline__ bool is_selected(int token) const {
    return at<unsigned>(p.at.selected_bitmap)[token / 32] >> (token % 32) & 1;
  }
  // Number of the target that the remaining token number `rank` is, or -1.
  __device__ __forceinline__ int target_of_rank(int rank) const {
    if (m == 0 || rank % step) return -1;
    return rank / step < m ? rank / step : -1;
  }

  const ZipParams& p;
  char* const sm;
  Team& team;
  int S, k, m;                                 // the image's own
  int64_t image_token, image_row, image_kept;  // where it begins in assignment, tokens and indices
  int64_t first_number, first_row_number;      // what tokens and rows are counted from in the results
  int chunks, words, step;
  int block_tokens;             // that a block owns: whole chunks
  int first_token, own_tokens;  // this block's slice of the tokens
  int first_chunk, own_chunks;  // and of the chunks of softmax statistics
  int tid, threads, lane, warp, warps, sub;

 private:
  int64_t place_;
};

}  // namespace visionzip::cuda
