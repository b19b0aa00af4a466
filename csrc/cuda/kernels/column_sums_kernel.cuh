// Column sums of softmax(scale * Q K^T): for each key what all queries' attention to it adds up to, by heads and chunks
// of queries.  Nothing of size (S, S) exists: a warp's logits never leave its registers.
//
// One pass, for sequences whose keys a block can hold: each warp owns a strip of keys, tiles of queries stream by, and
// the warps exchange a maximum and a sum for each query.  So a logit is computed once.  Two passes otherwise: the first
// leaves each query's maximum and sum, a warp owning queries while strips of keys stream by; the second adds up the
// columns, a warp owning keys again.  Where the log-sum-exp is given the second is all there is.
//
// Columns are added up in registers: queries in the order of their tiles, then over the lanes.  Every sum has a shape
// that depends on the sequence's length alone, whatever the batch, the block's size and its share of the chunks.
#pragma once

#include "cuda/kernels/column_sums_tile.cuh"
#include "cuda/kernels/dynamic_shared.cuh"

namespace visionzip::cuda {

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLeastFactor = 1.17549435e-38f;  // not zero, which -inf, of a key that does not exist, times is NaN

// One head of one image, and the block's chunks of it.  It lies in shared memory: registers are for the logits.
struct Head {
  int64_t queries, keys, lse, sums;  // where they begin: of pointers the compiler would not know to which memory
  int S, strips, chunk_tiles, first_chunk, end_chunk, end_tile, row_blocks;
  float factor;  // of logits, as exponents of two

  // The block's.
  __device__ __forceinline__ void find(const ColumnSumsParams& p) {
    const int parts = kSumChunks / p.block_chunks, part = static_cast<int>(blockIdx.x % parts);
    locate(p, blockIdx.x / parts);
    const int own_chunks = chunks_for(p);
    first_chunk = part * own_chunks;
    end_chunk = first_chunk + own_chunks;
    if (first_chunk >= kSumChunks) S = 0;
    end_tile = min(ceil_divide(S, kTileQueries), end_chunk * chunk_tiles);
    row_blocks = ceil_divide(chunk_tiles * kTileQueries, kRowBlock);
  }

  // number: of the head among those of all images, in the order that these are taken in.
  __device__ __forceinline__ void locate(const ColumnSumsParams& p, int64_t number) {
    const int64_t position = number / p.H;
    const int h = static_cast<int>(number - position * p.H);
    int64_t first_cell = position * p.S;
    S = p.S;
    if (p.sequences) {
      const Sequence own = p.sequences[p.order[position]];
      first_cell = int64_t{own.first_token} * p.group;
      S = own.k + own.m > 0 ? own.tokens * p.group : 0;
    }
    const auto begins = [&](int64_t of_image, int64_t of_cell) {
      return p.sequences ? first_cell * of_cell : position * of_image;
    };
    queries = begins(p.query_image, p.query_token) + h * p.query_head;
    keys = begins(p.key_image, p.key_token) + h * p.key_head;
    lse = begins(p.lse_image, 1) + h * p.lse_head;
    sums = kSumChunks * (first_cell * p.H + int64_t{h} * S);
    strips = ceil_divide(S, kStripKeys);
    chunk_tiles = ceil_divide(ceil_divide(S, kTileQueries), kSumChunks);
    factor = fmaxf(fabsf(p.scale) * kLog2E, kLeastFactor);
  }

 private:
  // As much work as a block has of the longest image; the blocks that are left over have none.
  __device__ __forceinline__ int chunks_for(const ColumnSumsParams& p) const {
    int chunks = p.block_chunks;
    while (chunks < kSumChunks && int64_t{S} * S * 2 * chunks <= int64_t{p.S} * p.S * p.block_chunks) chunks *= 2;
    return chunks;
  }
};

// The sums of a chunk for the keys of a warp's strip.  adds: to those of the chunk's earlier queries.
__device__ __forceinline__ void store_columns(const ColumnSumsParams& p, const Head& head, int lane, Columns& columns,
                                              int chunk, int first_key, bool adds) {
  float* to = p.sums + head.sums + int64_t{chunk} * head.S + first_key;
#pragma unroll
  for (int part = 0; part < kLaneKeys / 8; part++) {
    const float sum = eight_sums<4>(columns[part], lane / 4);
    const int key = key_of(lane, part * 8 + lane / 4);
    if (first_key + key < head.S) to[key] = adds ? to[key] + sum : sum;
  }
}

// What the parts of the kernel share.
template <class T, int kChannels>
struct HeadSums {
  static_assert(sizeof(Head) <= kHeadBytes);

  __device__ __forceinline__ explicit HeadSums(const ColumnSumsParams& params)
      : p(params),
        shape(params),
        head(*reinterpret_cast<Head*>(dynamic_shared())),
        stats(reinterpret_cast<float2*>(dynamic_shared() + kHeadBytes)),
        rows(reinterpret_cast<T*>(dynamic_shared() + kHeadBytes + kStatBytes)),
        lane(static_cast<int>(threadIdx.x) % 32),
        warp(__shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 32, 0)) {
    if (threadIdx.x == 0) head.find(p);
    __syncthreads();
  }

  // Rows first .. first + n of a matrix of S rows into shared memory.  Past the last row, that one again: what follows
  // from it is either masked or counts nothing, and holds no NaN that is not in the matrix.
  __device__ __forceinline__ void load_rows(T* to, const T* from, int64_t stride, int first, int n) const {
    constexpr int kUnit = kElements<T>;
    const int pitch = shape.pitch(), units = shape.units(), padded = shape.padded(), last = head.S - 1;
    const int tid = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    if (p.wide) {
#pragma unroll 1
      for (int x = tid; x < n * units; x += threads) {
        const int row = x / units, unit = x - row * units;
        ptx::copy_async16(to + row * pitch + unit * kUnit, from + min(first + row, last) * stride + unit * kUnit);
      }
    } else {
#pragma unroll 1
      for (int x = tid; x < n * padded; x += threads) {
        const int row = x / padded, d = x - row * padded;
        T element{};
        if (d < shape.D) element = from[min(first + row, last) * stride + d];
        to[row * pitch + d] = element;
      }
    }
    ptx::copy_async_commit();
  }
  __device__ __forceinline__ void load_queries(T* to, int first, int n) const {
    load_rows(to, static_cast<const T*>(p.queries) + head.queries, p.query_token, first, n);
  }
  __device__ __forceinline__ void load_keys(T* to, int first, int n) const {
    load_rows(to, static_cast<const T*>(p.keys) + head.keys, p.key_token, first, n);
  }
  // Rows that were loaded have landed, for every thread.
  __device__ __forceinline__ void wait_for_rows() const {
    ptx::copy_async_wait<0>();
    __syncthreads();
  }
  __device__ __forceinline__ int warps() const { return static_cast<int>(blockDim.x) / 32; }
  __device__ __forceinline__ T* row(int i) const { return rows + i * shape.pitch(); }

  // This warp's logits, to be multiplied by `factor`: the scale's sign is in them, and its being zero.
  __device__ __forceinline__ void form_logits(Logits& x, const T* tile, const T* strip) const {
    clear(x);
    multiply_add(x, tile, strip, shape, lane);
    take_sign(x, p.scale);
  }
  __device__ __forceinline__ void mask_past_end(Logits& x, int first_key) const {
    if (first_key + kStripKeys > head.S) mask_past(x, head.S - first_key, lane);
  }

  __device__ __forceinline__ void store_columns(Columns& columns, int chunk, int first_key, bool adds) const {
    cuda::store_columns(p, head, lane, columns, chunk, first_key, adds);
  }

  const ColumnSumsParams& p;
  const RowShape<T, kChannels> shape;
  Head& head;
  float2* const stats;
  T* const rows;
  const int lane;
  const int warp;  // by a shuffle, from which the compiler sees that it is the whole warp's
};

// ---- one pass -------------------------------------------------------------------------------------------------------

// a / b to the last bit but in rare cases, so that a key that has all attention has all of it; without the registers
// that a division takes for numbers that b, a sum of at least 1, cannot be.
__device__ __forceinline__ float quotient(float a, float b) {
  const float inverse = __fdividef(1.f, b), estimate = a * inverse;
  return fmaf(fmaf(-estimate, b, a), inverse, estimate);
}

// From the statistics of all strips: what this lane's exponentials of query r are to be multiplied by to be
// probabilities.  The four lanes of a query take every fourth strip.
template <class T, int kChannels>
__device__ __forceinline__ float weight_of(const HeadSums<T, kChannels>& z, const float2* stats, int r) {
  const float2* of_query = stats + query_of(z.lane, r) * kStatPitch;
  float2 part[kMostWarps / 4];
  float most = -INFINITY, sum = 0;
#pragma unroll
  for (int i = 0; i < kMostWarps / 4; i++) {
    const int strip = i * 4 + z.lane % 4;
    part[i] = strip < z.head.strips ? of_query[strip] : make_float2(-INFINITY, 0.f);
    most = fmaxf(most, part[i].x);
  }
  most = reduce<Max, 4>(most);
#pragma unroll
  for (int i = 0; i < kMostWarps / 4; i++) {
    if (i * 4 + z.lane % 4 < z.head.strips) sum = fmaf(part[i].y, ptx::exp2_approximate(part[i].x - most), sum);
  }
  return quotient(ptx::exp2_approximate(of_query[z.warp].x - most), reduce<Sum, 4>(sum));
}

// Two buffers for tiles, and two for their statistics, so that one barrier a tile suffices: a buffer is written again
// only after a barrier that every thread came to when it had read it.
template <class T, int kChannels>
__device__ __forceinline__ void sum_in_one_pass(const HeadSums<T, kChannels>& z) {
  const int first_key = z.warp * kStripKeys;
  const bool owns_keys = z.warp < z.head.strips;
  T* strips = z.row(2 * kTileQueries);
  z.load_keys(strips, 0, z.head.strips * kStripKeys);
  z.load_queries(z.row(0), z.head.first_chunk * z.head.chunk_tiles * kTileQueries, kTileQueries);
  z.wait_for_rows();
  int buffer = 0;
  for (int chunk = z.head.first_chunk; chunk < z.head.end_chunk; chunk++) {
    Columns columns = {};
    const int end = min(z.head.end_tile, (chunk + 1) * z.head.chunk_tiles);
    for (int tile = chunk * z.head.chunk_tiles; tile < end; tile++, buffer ^= 1) {
      const int first_query = tile * kTileQueries;
      if (tile + 1 < z.head.end_tile) {
        z.load_queries(z.row((buffer ^ 1) * kTileQueries), first_query + kTileQueries, kTileQueries);
      }
      float2* stats = z.stats + buffer * kTileQueries * kStatPitch;
      Logits x;
      if (owns_keys) {
        z.form_logits(x, z.row(buffer * kTileQueries), strips + first_key * z.shape.pitch());
        z.mask_past_end(x, first_key);
#pragma unroll
        for (int r = 0; r < kLaneQueries; r++) {
          const float most = max_of_query(x, r) * z.head.factor;
          exponentiate(x, r, z.head.factor, shift_of(most));
          const float sum = reduce<Sum, 4>(sum_of_query(x, r));
          if (z.lane % 4 == 0) stats[query_of(z.lane, r) * kStatPitch + z.warp] = make_float2(most, sum);
        }
      }
      z.wait_for_rows();
      if (owns_keys) {
#pragma unroll
        for (int r = 0; r < kLaneQueries; r++) {
          const float weight = weight_of(z, stats, r);
          add_columns(columns, x, r, first_query + query_of(z.lane, r) < z.head.S ? weight : 0.f);
        }
      }
    }
    if (owns_keys) z.store_columns(columns, chunk, first_key, false);
  }
}

// ---- two passes -----------------------------------------------------------------------------------------------------

// The first: what is subtracted in exponents, and the inverse sum, for queries first .. end, a tile for each warp at a
// time.
template <class T, int kChannels>
__device__ __forceinline__ void find_stats(const HeadSums<T, kChannels>& z, int first, int end) {
  T* strips = z.row(z.warps() * kTileQueries);
  for (int base = first; base < end; base += z.warps() * kTileQueries) {
    const int first_query = base + z.warp * kTileQueries;
    const int tiles = min(z.warps(), ceil_divide(end - base, kTileQueries));
    z.load_queries(z.row(0), base, tiles * kTileQueries);
    z.load_keys(strips, 0, kStripKeys);
    z.wait_for_rows();
    QueryStats stats;
    for (int strip = 0; strip < z.head.strips; strip++) {
      const int first_key = strip * kStripKeys;
      if (strip + 1 < z.head.strips) {
        z.load_keys(strips + (strip + 1) % 2 * kStripKeys * z.shape.pitch(), first_key + kStripKeys, kStripKeys);
      }
      if (z.warp < tiles) {
        Logits x;
        z.form_logits(x, z.row(z.warp * kTileQueries), strips + strip % 2 * kStripKeys * z.shape.pitch());
        z.mask_past_end(x, first_key);
        stats.add_strip(x, z.head.factor);
      }
      z.wait_for_rows();
    }
    if (z.warp >= tiles) continue;
#pragma unroll
    for (int r = 0; r < kLaneQueries; r++) {
      const int query = first_query + query_of(z.lane, r);
      const float all = reduce<Sum, 4>(stats.sum[r]);
      if (z.lane % 4 == 0 && query < end) z.stats[query - first] = make_float2(shift_of(stats.most[r]), 1.f / all);
    }
  }
}

template <class T, int kChannels>
__device__ __forceinline__ void take_stats(const HeadSums<T, kChannels>& z, int first, int end) {
  for (int query = first + static_cast<int>(threadIdx.x); query < end; query += static_cast<int>(blockDim.x)) {
    z.stats[query - first] = make_float2(z.p.lse[z.head.lse + query] * kLog2E, 1.f);
  }
}

// The second: the columns' sums over queries first .. end, whose statistics are there; a strip of keys for each warp at
// a time.
template <class T, int kChannels>
__device__ __forceinline__ void sum_columns(const HeadSums<T, kChannels>& z, int chunk, int first, int end, bool adds) {
  T* strips = z.row(2 * kTileQueries);
  for (int base = 0; base < z.head.strips; base += z.warps()) {
    const int strip = base + z.warp, first_key = strip * kStripKeys;
    z.load_keys(strips, base * kStripKeys, min(z.warps(), z.head.strips - base) * kStripKeys);
    z.load_queries(z.row(0), first, kTileQueries);
    z.wait_for_rows();
    Columns columns = {};
    int buffer = 0;
    for (int first_query = first; first_query < end; first_query += kTileQueries, buffer ^= 1) {
      const int next = first_query + kTileQueries;
      if (next < end) z.load_queries(z.row((buffer ^ 1) * kTileQueries), next, kTileQueries);
      if (strip < z.head.strips) {
        Logits x;
        z.form_logits(x, z.row(buffer * kTileQueries), strips + z.warp * kStripKeys * z.shape.pitch());
#pragma unroll
        for (int r = 0; r < kLaneQueries; r++) {
          const int query = first_query + query_of(z.lane, r);
          const float2 stat = query < end ? z.stats[query - first] : make_float2(INFINITY, 0.f);
          exponentiate(x, r, z.head.factor, stat.x);
          add_columns(columns, x, r, stat.y);
        }
      }
      z.wait_for_rows();
    }
    if (strip < z.head.strips) z.store_columns(columns, chunk, first_key, adds);
  }
}

template <class T, int kChannels>
__device__ __forceinline__ void sum_in_two_passes(const HeadSums<T, kChannels>& z) {
  for (int chunk = z.head.first_chunk; chunk < z.head.end_chunk; chunk++) {
    // One block of rows at least: a chunk without queries has sums as well.
    for (int block = 0; block < z.head.row_blocks; block++) {
      const int chunk_queries = z.head.chunk_tiles * kTileQueries, offset = block * kRowBlock;
      const int first = chunk * chunk_queries + offset;
      const int end = min(z.head.S, first + min(kRowBlock, chunk_queries - offset));
      if (z.p.lse) {
        take_stats(z, first, end);
      } else {
        find_stats(z, first, end);
      }
      __syncthreads();  // the statistics; and the strips have been read
      sum_columns(z, chunk, first, end, block > 0);
    }
  }
}

template <class T, int kChannels>
__global__ void __launch_bounds__(kMostWarps * 32, 1) column_sums_kernel(const __grid_constant__ ColumnSumsParams p) {
  const HeadSums<T, kChannels> z(p);
  if (z.head.S <= 0) return;
  if (!z.p.lse && z.head.S <= p.one_pass_tokens) {
    sum_in_one_pass(z);
  } else {
    sum_in_two_passes(z);
  }
}

}  // namespace visionzip::cuda
