// A warp's logits: those of a tile of kTileQueries queries with a strip of kStripKeys keys, in registers.
//
// They lie as the tensor cores leave them, whoever computes them.  A lane holds four queries, number lane / 4 of every
// eight, and of every eight keys the two from 2 (lane % 4) on: so four lanes share a query, and eight a key.
#pragma once

#include "cuda/kernels/element.cuh"
#include "cuda/kernels/ptx.cuh"
#include "cuda/kernels/warp.cuh"
#include "cuda/plan/column_sums_layout.h"
#include "cuda/plan/column_sums_params.h"

namespace visionzip::cuda {

constexpr int kLaneQueries = kTileQueries / 8;  // of a lane, and keys:
constexpr int kLaneKeys = kStripKeys / 4;

// [queries / 16][keys / 8][2 (query / 8 % 2) + key % 2]
using Logits = float[kTileQueries / 16][kStripKeys / 8][4];

// What a lane's queries add to its keys' sums.
using Columns = float[kLaneKeys / 8][8];

// Of a lane's numbers: query r (0 to 3) and key i (0 to 15), in ascending order.
__device__ __forceinline__ float& logit(Logits& x, int r, int i) { return x[r / 2][i / 2][r % 2 * 2 + i % 2]; }
__device__ __forceinline__ int query_of(int lane, int r) { return r * 8 + lane / 4; }
__device__ __forceinline__ int key_of(int lane, int i) { return i / 2 * 8 + 2 * (lane % 4) + i % 2; }

// How rows lie in shared memory.  kChannels: their number D, or 0 where only `p` knows it.
template <class T, int kChannels>
struct RowShape {
  static constexpr int kElementBytes = static_cast<int>(sizeof(T));

  __device__ __forceinline__ explicit RowShape(const ColumnSumsParams& p) : D(kChannels ? kChannels : p.D) {}
  __device__ __forceinline__ int units() const { return row_units(D, kElementBytes); }
  __device__ __forceinline__ int pitch() const { return row_pitch(D, kElementBytes) / kElementBytes; }
  __device__ __forceinline__ int padded() const { return units() * kElements<T>; }  // with zeros

  const int D;
};

// ---- products ----

// Steps of 16 channels and, where D asks for it, one of 8: nothing is padded to a multiple of 16.
template <class T, int kChannels>
__device__ __forceinline__ void multiply_by_tensor_cores(Logits& x, const T* queries, const T* keys,
                                                         const RowShape<T, kChannels>& shape, int lane) {
  const int pitch = shape.pitch(), padded = shape.padded();
  const T* query = queries + lane % 16 * pitch + lane / 16 * 8;
  const T* key = keys + (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * 8;
#pragma unroll(kChannels ? kChannels / 16 : 1)
  for (int c = 0; c + 16 <= padded; c += 16) {
    uint32_t a[2][4];
#pragma unroll
    for (int half = 0; half < 2; half++) ptx::load_matrices(a[half], query + half * 16 * pitch + c);
#pragma unroll
    for (int n = 0; n < kStripKeys / 16; n++) {
      uint32_t b[4];
      ptx::load_matrices(b, key + n * 16 * pitch + c);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        ptx::multiply_16x8x16<T>(x[half][2 * n], a[half], b[0], b[1]);
        ptx::multiply_16x8x16<T>(x[half][2 * n + 1], a[half], b[2], b[3]);
      }
    }
  }
  if (padded % 16 == 0) return;
  uint32_t a[4];
  ptx::load_matrices(a, queries + lane * pitch + padded - 8);
#pragma unroll
  for (int n = 0; n < kStripKeys / 32; n++) {
    uint32_t b[4];
    ptx::load_matrices(b, keys + (n * 32 + lane) * pitch + padded - 8);
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
      for (int i = 0; i < 4; i++) ptx::multiply_16x8x8<T>(x[half][n * 4 + i], a[2 * half], a[2 * half + 1], b[i]);
    }
  }
}

// Channels ascending, in float: for float32, whose decisions tensor cores would need three products for, and for GPUs
// without them.
template <class T, int kChannels>
__device__ __forceinline__ void multiply_by_fma(Logits& x, const T* queries, const T* keys,
                                                const RowShape<T, kChannels>& shape, int lane) {
  constexpr int kStep = 2;  // with four, sm_75 spills
  using Channels = Pack<T, kStep>;
  const int pitch = shape.pitch();
#pragma unroll 1
  for (int c = 0; c < shape.padded(); c += kStep) {
    float query[kLaneQueries][kStep];
#pragma unroll
    for (int r = 0; r < kLaneQueries; r++) {
      const Channels raw = *reinterpret_cast<const Channels*>(queries + query_of(lane, r) * pitch + c);
#pragma unroll
      for (int e = 0; e < kStep; e++) query[r][e] = widen(raw.element[e]);
    }
#pragma unroll
    for (int i = 0; i < kLaneKeys; i++) {
      const Channels raw = *reinterpret_cast<const Channels*>(keys + key_of(lane, i) * pitch + c);
#pragma unroll
      for (int e = 0; e < kStep; e++) {
        const float key = widen(raw.element[e]);
#pragma unroll
        for (int r = 0; r < kLaneQueries; r++) logit(x, r, i) = fmaf(query[r][e], key, logit(x, r, i));
      }
    }
  }
}

__device__ __forceinline__ void clear(Logits& x) {
#pragma unroll
  for (int r = 0; r < kLaneQueries; r++) {
#pragma unroll
    for (int i = 0; i < kLaneKeys; i++) logit(x, r, i) = 0;
  }
}

template <class T, int kChannels>
__device__ __forceinline__ void multiply_add(Logits& x, const T* queries, const T* keys,
                                             const RowShape<T, kChannels>& shape, int lane) {
  if constexpr (sizeof(T) == 2) {
    if (ptx::has_matrix_products()) return multiply_by_tensor_cores(x, queries, keys, shape, lane);
  }
  multiply_by_fma(x, queries, keys, shape, lane);
}

// ---- softmax ----

__device__ __forceinline__ void multiply_all(Logits& x, float by) {
#pragma unroll
  for (int r = 0; r < kLaneQueries; r++) {
#pragma unroll
    for (int i = 0; i < kLaneKeys; i++) logit(x, r, i) *= by;
  }
}

// Of logits that are to be multiplied by the magnitude of `scale`: its sign, and its being zero.
__device__ __forceinline__ void take_sign(Logits& x, float scale) {
  if (scale <= 0) multiply_all(x, scale < 0 ? -1.f : 0.f);
}

// keys: how many of the strip exist.  The others get no probability.  Compared with constants: the lane's keys would
// take sixteen registers.
__device__ __forceinline__ void mask_past(Logits& x, int keys, int lane) {
  const int end = keys - key_of(lane, 0);
#pragma unroll
  for (int i = 0; i < kLaneKeys; i++) {
    if (key_of(0, i) < end) continue;
#pragma unroll
    for (int r = 0; r < kLaneQueries; r++) logit(x, r, i) = -INFINITY;
  }
}

// Over the four lanes that share a query.
__device__ __forceinline__ float max_of_query(Logits& x, int r) {
  float most = logit(x, r, 0);
#pragma unroll
  for (int i = 1; i < kLaneKeys; i++) most = fmaxf(most, logit(x, r, i));
  return reduce<Max, 4>(most);
}

// This lane's part.
__device__ __forceinline__ float sum_of_query(Logits& x, int r) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kLaneKeys; i++) sum += logit(x, r, i);
  return sum;
}

// Shifts from here on are rounded by as much as exponents' whole range.
constexpr float kLargeShift = 2147483648.f;

// Logits -> 2^(factor * logit - shift).  Of a large shift, which is a rounded product itself, products that are rounded
// alike are taken off: the largest logit's exponent is 0, and others' are -128 or less.
__device__ __forceinline__ void exponentiate(Logits& x, int r, float factor, float shift) {
  if (__any_sync(kAllLanes, fabsf(shift) >= kLargeShift)) {
    const float by = fabsf(shift) >= kLargeShift ? factor : 1.f;
#pragma unroll
    for (int i = 0; i < kLaneKeys; i++) logit(x, r, i) = __fmul_rn(logit(x, r, i), by);
    factor = fabsf(shift) >= kLargeShift ? 1.f : factor;
  }
#pragma unroll
  for (int i = 0; i < kLaneKeys; i++) logit(x, r, i) = ptx::exp2_approximate(fmaf(logit(x, r, i), factor, -shift));
}

// Probabilities of query r, once multiplied by its weight, added to the columns.
__device__ __forceinline__ void add_columns(Columns& columns, Logits& x, int r, float weight) {
#pragma unroll
  for (int i = 0; i < kLaneKeys; i++) columns[i / 8][i % 8] = fmaf(logit(x, r, i), weight, columns[i / 8][i % 8]);
}

// A maximum as what is subtracted in exponents: where there is no number, nothing.
__device__ __forceinline__ float shift_of(float most) { return most == -INFINITY ? 0.f : most; }

// A lane's queries' statistics of softmax over the strips of keys so far: the largest exponent, and this lane's part of
// the sum, relative to it.
struct QueryStats {
  __device__ __forceinline__ QueryStats() {
#pragma unroll
    for (int r = 0; r < kLaneQueries; r++) most[r] = -INFINITY;
  }

  // Leaves exponentials in x.
  __device__ __forceinline__ void add_strip(Logits& x, float factor) {
#pragma unroll
    for (int r = 0; r < kLaneQueries; r++) {
      const float before = most[r];
      most[r] = fmaxf(before, max_of_query(x, r) * factor);
      const float shift = shift_of(most[r]);
      exponentiate(x, r, factor, shift);
      sum[r] = fmaf(sum[r], ptx::exp2_approximate(before - shift), sum_of_query(x, r));
    }
  }

  float most[kLaneQueries], sum[kLaneQueries] = {};
};

}  // namespace visionzip::cuda
