// Phase 5: the output rows, each block for its slice of channels and all tokens.  Rows of hidden are wide: they start
// at a multiple of 16 bytes and are as long; others are merged by a kernel of their own (merge.cuh).
#pragma once

#include "cuda/kernels/zip_image.cuh"
#include "cuda/plan/merge_params.h"

namespace visionzip::cuda {

// Rows and columns that a thread takes of a matrix of `width` columns: of all places in order, every `threads`-th from
// its own on.  Without a division for each.
class Places {
 public:
  __device__ __forceinline__ Places(int first, int threads, int width)
      : row(first / width),
        column(first - row * width),
        rows_(threads / width),
        columns_(threads - rows_ * width),
        width_(width) {}
  __device__ __forceinline__ void step() {
    row += rows_;
    column += columns_;
    if (column < width_) return;
    column -= width_;
    row++;
  }

  int row, column;

 private:
  int rows_, columns_, width_;
};

constexpr int kTileLoads = 8;  // of a thread, under way at a time

// Hidden's channels of this block, in tiles: read from global memory, or all of them, as one tile, from a copy that was
// started while scores were exchanged.
template <class T, bool kFromQueries, class Team>
class HiddenTiles {
 public:
  __device__ __forceinline__ explicit HiddenTiles(const ZipImage<T, kFromQueries, Team>& z)
      : z_(z),
        hidden_(static_cast<const T*>(z.p.hidden) + z.offset(z.p.hidden_image)),
        tokens_(static_cast<T*>(z.p.tokens) + z.image_row * z.p.C),
        first_(z.team.rank * z.p.block_vectors) {
    const int all = z.p.C / kPer;
    vectors_ = max(0, min(z.p.block_vectors, all - first_));
    count = ceil_divide(vectors_, z.p.tile_vectors);
  }

  __device__ __forceinline__ void start_copy() {
    if (!z_.p.staged || vectors_ == 0) return;
    const T* from = hidden_ + static_cast<size_t>(first_) * kPer;
    for (Places at(z_.tid, z_.threads, vectors_); at.row < z_.S; at.step()) {
      ptx::copy_async16(stage() + static_cast<size_t>(at.row) * z_.p.tile_vectors + at.column,
                        from + at.row * z_.p.hidden_token + at.column * kPer);
    }
    ptx::copy_async_commit();
  }
  // The copy has landed, for every thread.
  __device__ __forceinline__ void wait_for_copy() {
    if (!z_.p.staged) return;
    ptx::copy_async_wait<0>();
    __syncthreads();
  }

  __device__ __forceinline__ int width_of(int tile) const {
    return min(z_.p.tile_vectors, vectors_ - tile * z_.p.tile_vectors);
  }
  __device__ __forceinline__ uint4 load(int tile, int token, int v) const {
    return z_.p.staged ? load_staged(token, v) : load_global(tile, token, v);
  }
  __device__ __forceinline__ uint4 load_staged(int token, int v) const {
    return stage()[static_cast<size_t>(token) * z_.p.tile_vectors + v];
  }
  __device__ __forceinline__ uint4 load_global(int tile, int token, int v) const {
    return ptx::load_once16(hidden_ + token * z_.p.hidden_token + channel(tile, v));
  }
  __device__ __forceinline__ void store(int tile, int row, int v, uint4 x) const {
    ptx::store16(tokens_ + int64_t{row} * z_.p.C + channel(tile, v), x);
  }

  int count;  // of tiles

 private:
  static constexpr int kPer = kElements<T>;

  __device__ __forceinline__ int64_t channel(int tile, int v) const {
    return int64_t{first_ + tile * z_.p.tile_vectors + v} * kPer;
  }
  __device__ __forceinline__ uint4* stage() const { return z_.template at<uint4>(z_.p.at.stage); }

  const ZipImage<T, kFromQueries, Team>& z_;
  const T* hidden_;
  T* tokens_;
  const int first_;
  int vectors_;
};

// The kept rows of one tile.  staged: the copy has landed.
template <class Tiles, class Image>
__device__ __forceinline__ void copy_kept(const Image& z, const Tiles& tiles, int tile, bool staged) {
  const uint16_t* kept = z.template at<uint16_t>(z.p.at.kept);
  const int width = tiles.width_of(tile);
  constexpr int kLoads = kTileLoads / 2;
  for (Places at(z.tid, z.threads, width), to = at; at.row < z.k;) {
    uint4 x[kLoads];
    const auto load_by = [&](const auto& load) {
#pragma unroll
      for (int i = 0; i < kLoads; i++, at.step()) {
        x[i] = load(kept[min(at.row, z.k - 1)], at.column);  // the last again: no load waits for a branch
      }
    };
    if (staged) {
      load_by([&](int token, int v) { return tiles.load_staged(token, v); });
    } else {
      load_by([&](int token, int v) { return tiles.load_global(tile, token, v); });
    }
#pragma unroll
    for (int i = 0; i < kLoads; i++, to.step()) {
      if (to.row < z.k) tiles.store(tile, to.row, to.column, x[i]);
    }
  }
}

// Where each target's tokens, and their segments, begin: counted with integer atomics (any order gives the same), then
// summed by one warp.
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void count_tokens(const ZipImage<T, kFromQueries, Team>& z) {
  const ZipParams& p = z.p;
  const uint16_t* joined = z.template at<uint16_t>(p.at.merged_into);
  int* first_of = z.template at<int>(p.at.first_of_target);
  int* segments_before = z.template at<int>(p.at.segments_before);
  for (int t = z.tid; t <= z.m; t += z.threads) first_of[t] = 0;
  __syncthreads();
  for (int i = z.tid; i < z.S; i += z.threads) {
    if (joined[i] != kNone) atomicAdd(&first_of[joined[i]], 1);
  }
  __syncthreads();
  if (z.warp == 0) {
    int tokens = 0, segments = 0;
    for (int base = 0; base <= z.m; base += 32) {
      const int t = base + z.lane, n = t < z.m ? first_of[t] : 0;
      int all_tokens, all_segments;
      const int token = exclusive_scan(n, z.lane, all_tokens);
      const int segment = exclusive_scan(ceil_divide(n, kSegment), z.lane, all_segments);
      if (t <= z.m) {
        first_of[t] = tokens + token;
        segments_before[t] = segments + segment;
      }
      tokens += all_tokens;
      segments += all_segments;
    }
  }
  __syncthreads();
}

// Tokens by (target, index): a warp lists one target's.
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void list_tokens(const ZipImage<T, kFromQueries, Team>& z) {
  const ZipParams& p = z.p;
  const uint16_t* joined = z.template at<uint16_t>(p.at.merged_into);
  const int* first_of = z.template at<int>(p.at.first_of_target);
  const int* segments_before = z.template at<int>(p.at.segments_before);
  for (int t = z.warp; t < z.m; t += z.warps) {
    int place = first_of[t];
    for (int w = 0; w < z.words && place < first_of[t + 1]; w++) {
      const int i = w * 32 + z.lane;
      const bool hit = i < z.S && joined[i] == t;
      const unsigned hits = __ballot_sync(kAllLanes, hit);
      if (hit) {
        z.template at<uint16_t>(p.at.token_list)[place + __popc(hits & ((1u << z.lane) - 1))] =
            static_cast<uint16_t>(i);
      }
      place += __popc(hits);
    }
    for (int s = segments_before[t] + z.lane; s < segments_before[t + 1]; s += 32) {
      z.template at<uint16_t>(p.at.target_of_segment)[s] = static_cast<uint16_t>(t);
    }
  }
  __syncthreads();
}

// A thread adds one segment's tokens, in ascending order, for one vector of channels.
template <class T, class Tiles, class Image>
__device__ __forceinline__ void sum_segments(const Image& z, const Tiles& tiles, int tile) {
  constexpr int kPer = kElements<T>;
  const ZipParams& p = z.p;
  const int width = tiles.width_of(tile);
  const int* first_of = z.template at<int>(p.at.first_of_target);
  const int* segments_before = z.template at<int>(p.at.segments_before);
  const uint16_t* list = z.template at<uint16_t>(p.at.token_list);
  const int segments = segments_before[z.m];
  for (Places at(z.tid, z.threads, width); at.row < segments; at.step()) {
    const int s = at.row, v = at.column, t = z.template at<uint16_t>(p.at.target_of_segment)[s];
    const int begin = first_of[t] + (s - segments_before[t]) * kSegment, end = min(first_of[t + 1], begin + kSegment);
    float sum[kPer] = {};
#pragma unroll 1
    for (int first = begin; first < end; first += kTileLoads) {
      uint4 raw[kTileLoads];
#pragma unroll
      for (int i = 0; i < kTileLoads; i++) {
        raw[i] = first + i < end ? tiles.load(tile, list[first + i], v) : make_uint4(0, 0, 0, 0);
      }
#pragma unroll
      for (int i = 0; i < kTileLoads; i++) {
        if (first + i >= end) break;
        float x[kPer];
        unpack<T>(raw[i], x);
#pragma unroll
        for (int e = 0; e < kPer; e++) sum[e] += x[e];
      }
    }
    float* to = z.template at<float>(p.at.partial_sums) + (static_cast<size_t>(s) * p.tile_vectors + v) * kPer;
#pragma unroll
    for (int e = 0; e < kPer; e += 4) {
      *reinterpret_cast<float4*>(to + e) = make_float4(sum[e], sum[e + 1], sum[e + 2], sum[e + 3]);
    }
  }
}

// A thread adds a target's segments, in order, and makes the row.
template <class T, class Tiles, class Image>
__device__ __forceinline__ void finish_rows(const Image& z, const Tiles& tiles, int tile) {
  constexpr int kPer = kElements<T>;
  const ZipParams& p = z.p;
  const int width = tiles.width_of(tile);
  const int* first_of = z.template at<int>(p.at.first_of_target);
  const int* segments_before = z.template at<int>(p.at.segments_before);
  for (Places at(z.tid, z.threads, width); at.row < z.m; at.step()) {
    const int t = at.row, v = at.column, n = first_of[t + 1] - first_of[t];
    float sum[kPer] = {};
    for (int s = segments_before[t]; s < segments_before[t + 1]; s++) {
      const float* part =
          z.template at<float>(p.at.partial_sums) + (static_cast<size_t>(s) * p.tile_vectors + v) * kPer;
#pragma unroll
      for (int e = 0; e < kPer; e += 4) {
        const float4 y = *reinterpret_cast<const float4*>(part + e);
        sum[e] += y.x;
        sum[e + 1] += y.y;
        sum[e + 2] += y.z;
        sum[e + 3] += y.w;
      }
    }
    float row[kPer];
    unpack<T>(tiles.load(tile, z.template at<uint16_t>(p.at.targets)[t], v), row);
    const bool mean = p.mode == MergeMode::kMean;
    const auto divisor = static_cast<float>(mean ? n + 1 : max(n, 1));
#pragma unroll
    for (int e = 0; e < kPer; e++) {
      if (n > 0) row[e] = mean ? (row[e] + sum[e]) / divisor : row[e] + sum[e] / divisor;
    }
    tiles.store(tile, z.k + t, v, pack<T>(row));
  }
}

// merged_into is complete.
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void merge_tokens(const ZipImage<T, kFromQueries, Team>& z,
                                             HiddenTiles<T, kFromQueries, Team>& tiles) {
  count_tokens(z);
  list_tokens(z);
  for (int tile = 0; tile < tiles.count; tile++) {
    if (tile > 0) __syncthreads();  // the partial sums have been read
    sum_segments<T>(z, tiles, tile);
    __syncthreads();
    finish_rows<T>(z, tiles, tile);
  }
}

}  // namespace visionzip::cuda
