// The first launch: from one read of the keys, metrics, CLS's logits and the statistics of their chunks.
#pragma once

#include "cuda/kernels/global_slice.cuh"
#include "cuda/kernels/launch.h"
#include "cuda/kernels/zip_keys.cuh"
#include "cuda/kernels/zip_scores.cuh"

namespace visionzip::cuda {

template <class T>
__device__ __forceinline__ void find_chunk_stats(const Slice<T, true>& z) {
  const ZipParams& p = z.p;
  const int chunk = chunk_tokens(z.S), pitch = heads_pitch(p.H);
  for (int x = z.tid; x < z.own_chunks * p.H; x += z.threads) {
    const int c = x / p.H, h = x - c * p.H, n = min(chunk, z.own_tokens - c * chunk);
    const float* logits = z.template at<float>(p.at.logits) + static_cast<size_t>(c) * chunk * pitch + h;
    z.template at<float2>(p.at.softmax_stats)[x] = chunk_stat(logits, pitch, n);
  }
}

template <class T, bool kFromQueries>
__global__ void __launch_bounds__(kSliceThreads, 1) global_keys_kernel(const __grid_constant__ GlobalParams p) {
  SliceTeam team;
  for (int64_t slice = blockIdx.x; slice < p.slices; slice += gridDim.x) {
    const Slice<T, kFromQueries> z(p, team, slice);
    if (z.is_empty()) continue;
    if constexpr (kFromQueries) {
      load_query(z);
      __syncthreads();
    }
    read_keys(z);
    if constexpr (kFromQueries) {
      if (p.lse) continue;
      __syncthreads();
      find_chunk_stats(z);
    }
  }
}

// Instantiated by global_keys_<dtype>.cu, a file each, so that they compile side by side.
template <class T>
cudaError_t launch_global_keys_as(const GlobalParams& params, const LaunchShape& shape, cudaStream_t stream) {
  return scores_in_kernel(params) ? launch(global_keys_kernel<T, true>, shape, stream, params)
                                  : launch(global_keys_kernel<T, false>, shape, stream, params);
}

}  // namespace visionzip::cuda
