// Column sums for heads that shared memory has no room for: products are formed a slice of channels at a time.  Two
// launches, as the other kernel has two passes: each query's statistics of softmax, then the columns.  Every sum has a
// shape that depends on the sequence's length alone.
#pragma once

#include "cuda/kernels/column_sums_kernel.cuh"

namespace visionzip::cuda {

constexpr int kSlicedThreads = kSlicedWarps * 32;

// A block's warps form the logits of one tile of queries, each with a strip of keys, in step.
template <class T>
struct SlicedShared {
  static constexpr int kPitch = row_pitch(kSlicedChannels, sizeof(T)) / static_cast<int>(sizeof(T));

  alignas(16) T queries[kTileQueries * kPitch];
  alignas(16) T keys[kSlicedWarps * kStripKeys * kPitch];
  float2 stats[kSlicedWarps][kTileQueries];  // of each warp's strips
};

template <class T>
struct SlicedSums {
  using Shared = SlicedShared<T>;

  __device__ __forceinline__ SlicedSums(const ColumnSumsParams& params, Shared& memory, int64_t head_number)
      : p(params), shared(memory), lane(static_cast<int>(threadIdx.x) % 32), warp(static_cast<int>(threadIdx.x) / 32) {
    head.locate(p, head_number);
  }

  // Channels c .. c + kSlicedChannels of rows first .. first + n.  Past the last row, that one again; past the last
  // channel, zeros.
  __device__ __forceinline__ void load_slice(T* to, const T* from, int64_t stride, int first, int n, int c) const {
#pragma unroll 4
    for (int x = static_cast<int>(threadIdx.x); x < n * kSlicedChannels; x += kSlicedThreads) {
      const int row = x / kSlicedChannels, d = x % kSlicedChannels;
      T element{};
      if (c + d < p.D) element = from[min(first + row, head.S - 1) * stride + c + d];
      to[row * Shared::kPitch + d] = element;
    }
  }

  // Of queries first_query .. with the warp's strip, to be multiplied by `factor`.  Called by the whole block.
  __device__ __forceinline__ void form_logits(Logits& x, int first_query, int first_strip) const {
    const RowShape<T, kSlicedChannels> shape(p);
    const T* queries = static_cast<const T*>(p.queries) + head.queries;
    const T* keys = static_cast<const T*>(p.keys) + head.keys;
    clear(x);
    for (int c = 0; c < p.D; c += kSlicedChannels) {
      __syncthreads();  // the last slice has been read
      load_slice(shared.queries, queries, p.query_token, first_query, kTileQueries, c);
      load_slice(shared.keys, keys, p.key_token, first_strip * kStripKeys, kSlicedWarps * kStripKeys, c);
      __syncthreads();
      multiply_add(x, shared.queries, shared.keys + warp * kStripKeys * Shared::kPitch, shape, lane);
    }
    take_sign(x, p.scale);
  }

  __device__ __forceinline__ float2* stats() const {
    return reinterpret_cast<float2*>(p.sums + p.all_cells * p.H * kSumChunks) + head.sums / kSumChunks;
  }
  // What is subtracted in exponents, and what exponentials are multiplied by; of a query past the end, nothing.
  __device__ __forceinline__ float2 stat_of(int query, int end) const {
    if (query >= end) return make_float2(INFINITY, 0.f);
    return p.lse ? make_float2(p.lse[head.lse + query] * kLog2E, 1.f) : stats()[query];
  }

  const ColumnSumsParams& p;
  Shared& shared;
  Head head;
  const int lane, warp;
};

// This warp's strips' part of each query's statistics.
template <class T>
__device__ __forceinline__ void find_stats_of_strips(const SlicedSums<T>& z, int first_query) {
  QueryStats stats;
  for (int first = 0; first < z.head.strips; first += kSlicedWarps) {
    Logits x;
    z.form_logits(x, first_query, first);
    const int first_key = (first + z.warp) * kStripKeys;
    if (first_key >= z.head.S) continue;
    if (first_key + kStripKeys > z.head.S) mask_past(x, z.head.S - first_key, z.lane);
    stats.add_strip(x, z.head.factor);
  }
#pragma unroll
  for (int r = 0; r < kLaneQueries; r++) {
    const float all = reduce<Sum, 4>(stats.sum[r]);
    if (z.lane % 4 == 0) z.shared.stats[z.warp][query_of(z.lane, r)] = make_float2(stats.most[r], all);
  }
}

template <class T>
__global__ void __launch_bounds__(kSlicedThreads) sliced_stats_kernel(const __grid_constant__ ColumnSumsParams p) {
  __shared__ SlicedShared<T> shared;
  const int64_t tiles = ceil_divide(p.S, kTileQueries);
  for (int64_t block = blockIdx.x; block < p.images * p.H * tiles; block += gridDim.x) {
    const int64_t number = block / tiles;
    const SlicedSums<T> z(p, shared, number);
    const int first_query = static_cast<int>(block - number * tiles) * kTileQueries;
    if (first_query >= z.head.S) continue;
    find_stats_of_strips(z, first_query);
    __syncthreads();
    const int own = static_cast<int>(threadIdx.x);
    if (own < kTileQueries && first_query + own < z.head.S) {
      float most = -INFINITY, sum = 0;
      for (int w = 0; w < kSlicedWarps; w++) most = fmaxf(most, shared.stats[w][own].x);
      const float shift = shift_of(most);
      for (int w = 0; w < kSlicedWarps; w++) {
        const float2 part = shared.stats[w][own];
        sum = fmaf(part.y, ptx::exp2_approximate(part.x - shift), sum);
      }
      z.stats()[first_query + own] = make_float2(shift, 1.f / sum);
    }
    __syncthreads();  // before the next tile's are found
  }
}

template <class T>
__global__ void __launch_bounds__(kSlicedThreads) sliced_columns_kernel(const __grid_constant__ ColumnSumsParams p) {
  __shared__ SlicedShared<T> shared;
  const int64_t groups = ceil_divide(ceil_divide(p.S, kStripKeys), kSlicedWarps);
  for (int64_t block = blockIdx.x; block < p.images * p.H * kSumChunks * groups; block += gridDim.x) {
    const int64_t number = block / groups / kSumChunks;
    const SlicedSums<T> z(p, shared, number);
    const int chunk = static_cast<int>(block / groups % kSumChunks);
    const int first_strip = static_cast<int>(block % groups) * kSlicedWarps;
    if (first_strip >= z.head.strips) continue;
    const int chunk_queries = z.head.chunk_tiles * kTileQueries, first = chunk * chunk_queries;
    const int end = min(z.head.S, first + chunk_queries), first_key = (first_strip + z.warp) * kStripKeys;
    Columns columns = {};
    for (int first_query = first; first_query < end; first_query += kTileQueries) {
      Logits x;
      z.form_logits(x, first_query, first_strip);
#pragma unroll
      for (int r = 0; r < kLaneQueries; r++) {
        const float2 stat = z.stat_of(first_query + query_of(z.lane, r), end);
        exponentiate(x, r, z.head.factor, stat.x);
        add_columns(columns, x, r, stat.y);
      }
    }
    store_columns(p, z.head, z.lane, columns, chunk, first_key, false);
  }
}

}  // namespace visionzip::cuda
