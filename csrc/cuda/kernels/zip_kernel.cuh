// The fused kernel: score, select, assign and merge one image by one team of blocks, in one launch.
//
// Written once over Team (team.h).  Exposed team barriers: one for given attention (the scores), one more for queries
// and keys (the softmax statistics), one more where selection counts ranks, one for each token that the policy
// "distinct" takes; the assignments' barrier is split around the writing of what needs no peer.  Nothing in the result
// depends on the team's size, the block's size, staging, the tile's width or whether loads are wide: every
// floating-point sum has a shape fixed by (S, D, H) or by the assignment alone.
#pragma once

#include "cuda/kernels/dynamic_shared.cuh"
#include "cuda/kernels/zip_assign.cuh"
#include "cuda/kernels/zip_keys.cuh"
#include "cuda/kernels/zip_merge.cuh"
#include "cuda/kernels/zip_scores.cuh"
#include "cuda/kernels/zip_select.cuh"

namespace visionzip::cuda {

template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void zip_image(const ZipImage<T, kFromQueries, Team>& z) {
  const ZipParams& p = z.p;
  HiddenTiles<T, kFromQueries, Team> tiles(z);
  z.team.start_arrive();
  prefetch_keys(z);
  if constexpr (kFromQueries) {
    load_query(z);
    __syncthreads();
  } else if (p.attn_rows == 1) {
    score_rows(z);
  } else {
    sum_matrix(z);
  }
  read_keys(z);
  __syncthreads();
  z.team.start_wait();

  if constexpr (kFromQueries) {
    score_logits(z);
  } else {
    if (p.attn_rows > 1) score_matrix(z);
  }
  send_scores(z);
  // Behind the keys and while scores travel: those are on the critical path, hidden is not.
  const bool merges = z.m > 0 && p.hidden;
  if (merges) tiles.start_copy();
  receive_scores(z);
  select_tokens(z);

  if (z.m > 0) assign_tokens(z);
  write_decision(z);
  if (merges) tiles.wait_for_copy();
  if (p.hidden) {
    for (int tile = 0; tile < tiles.count; tile++) copy_kept(z, tiles, tile, merges && p.staged);
  }
  if (z.m > 0) {
    z.team.wait();
    z.team.fetch(z.template at<uint16_t>(p.at.merged_into), z.S);
  }
  if (merges) merge_tokens(z, tiles);
}

template <class T, bool kFromQueries, class Team>
__global__ void __launch_bounds__(kZipThreads, 1) zip_kernel(const __grid_constant__ ZipParams p) {
  char* shared = reinterpret_cast<char*>(dynamic_shared());
  Team team(p, shared);
  for (int64_t position = team.first_position(); position < p.images; position += p.teams) {
    const ZipImage<T, kFromQueries, Team> z(p, shared, team, position);
    if (z.k + z.m == 0) {
      drop_image(z);
      continue;
    }
    zip_image(z);
    __syncthreads();  // before the next image's first phase writes
  }
}

}  // namespace visionzip::cuda
