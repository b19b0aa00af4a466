// Column sums of softmax(scale * Q K^T) of one head, by tiles of query rows: nothing of size (S, S) exists.
//
// A tile's logits (kRows, S) are computed by a register-blocked product of kRows queries with two vectors of keys,
// turned into probabilities where they lie, and added to the sums.  Keys are packed once: blocks of kColumns keys,
// transposed, so that a load takes one channel (or, for the bfloat16 dot product, a pair of channels) of kColumns keys.
#pragma once

#include "cpu/kernels/dispatch.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/scores_body.h"
#include "cpu/kernels/simd.h"

namespace visionzip::cpu::VISIONZIP_ISA {

using namespace visionzip::VISIONZIP_ISA;

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 12;  // 24 accumulators, two keys, one query: 27 of 32 registers
#else
constexpr int kRows = 6;  // 12 accumulators, two keys, one query: 15 of 16 registers
#endif
constexpr int kColumns = 2 * kLanes;

// What the products of queries and keys are made of: units of 4 bytes, kLanes of them in a vector.

// Operands widened to float.
template <class T>
struct FloatProduct {
  using Unit = float;
  static int64_t units(int64_t D) { return D; }
  // Units from i on of a row x of D channels, zero past the last.
  static Vec load_row(const T* x, int64_t i, int64_t D) { return load_up_to(x + i, D - i); }
  static Vec negative(Vec x) { return -x; }
  static inline void multiply_add(Vec& sum, Unit query, Vec keys) { sum += query * keys; }
};

// What a dtype's elements are multiplied by.
template <class T>
struct ProductOf {
  using Type = FloatProduct<T>;
};

#if defined(__AVX512BF16__)
// Pairs of bfloat16 channels, multiplied and added in float by one instruction.
struct PairProduct {
  using Unit = uint32_t;
  static int64_t units(int64_t D) { return (D + 1) / 2; }
  static Vec load_row(const BFloat16* x, int64_t i, int64_t D) {
    uint16_t bits[2 * kLanes] = {};
    const int64_t left = D - 2 * i;
    memcpy(bits, x + 2 * i, left < 2 * kLanes ? static_cast<size_t>(left) * 2 : sizeof bits);
    Vec pairs;
    memcpy(&pairs, bits, sizeof pairs);
    return pairs;
  }
  static Vec negative(Vec x) { return from_bits(bits_of(x) ^ 0x80008000u); }
  static inline void multiply_add(Vec& sum, Unit query, Vec keys) {
    const __m512i pair = _mm512_set1_epi32(static_cast<int32_t>(query));
    sum = reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(pair),
                                                 reinterpret_cast<__m512bh>(keys)));
  }
};

template <>
struct ProductOf<BFloat16> {
  using Type = PairProduct;
};
#endif

// The part of a head's work that does not depend on the tile, carved from the workspace.
template <class Product>
struct TileBuffers {
  using Unit = typename Product::Unit;
  Unit* keys;      // (blocks, units, kColumns)
  Unit* queries;   // (units, kRows)
  float* logits;   // (kRows, padded)
  int64_t padded;  // S rounded up to kColumns

  TileBuffers(void* workspace, int64_t S, int64_t D) {
    padded = (S + kColumns - 1) / kColumns * kColumns;
    float* p = static_cast<float*>(workspace);
    logits = p;
    keys = reinterpret_cast<Unit*>(logits + kRows * padded);
    queries = keys + padded * Product::units(D);
  }
};

static size_t column_sum_workspace(int64_t S, int64_t D) {
  const int64_t padded = (S + kColumns - 1) / kColumns * kColumns;
  return static_cast<size_t>(kRows * padded + padded * D + kRows * D) * sizeof(float);
}

// Past the last key, the last key again: the rows' maxima need no mask.
template <class T, class Product>
static void pack_keys(const ColumnSumTask& task, const TileBuffers<Product>& to) {
  const int64_t units = Product::units(task.D);
  for (int64_t first = 0; first < to.padded; first += kLanes) {
    auto* out = to.keys + first / kColumns * kColumns * units + first % kColumns;
    for (int64_t i = 0; i < units; i += kLanes) {
      Vec keys[kLanes];
      for (int64_t j = 0; j < kLanes; j++) {
        const int64_t key = first + j < task.S ? first + j : task.S - 1;
        keys[j] = Product::load_row(static_cast<const T*>(task.keys) + key * task.key_stride, i, task.D);
      }
      transpose(keys);
      for (int64_t u = 0; u < kLanes && i + u < units; u++) memcpy(out + (i + u) * kColumns, &keys[u], sizeof keys[u]);
    }
  }
}

// A negative scale is taken into the queries' sign, so that the largest logit is the largest exponent.
template <class T, class Product>
static void pack_queries(const ColumnSumTask& task, int64_t row, int64_t rows, const TileBuffers<Product>& to) {
  const int64_t units = Product::units(task.D);
  for (int64_t first = 0; first < kRows; first += kLanes) {
    const int64_t taken = kRows - first < kLanes ? kRows - first : kLanes;
    for (int64_t i = 0; i < units; i += kLanes) {
      Vec queries[kLanes] = {};
      for (int64_t r = 0; r < taken; r++) {
        const int64_t query = row + (first + r < rows ? first + r : 0);
        const T* x = static_cast<const T*>(task.queries) + query * task.query_stride;
        queries[r] = Product::load_row(x, i, task.D);
        if (task.scale < 0) queries[r] = Product::negative(queries[r]);
      }
      transpose(queries);
      auto* out = to.queries + i * kRows + first;
      const size_t bytes = static_cast<size_t>(taken) * sizeof(*out);
      for (int64_t u = 0; u < kLanes && i + u < units; u++) memcpy(out + u * kRows, &queries[u], bytes);
    }
  }
}

// A function of its own: where it is inlined, GCC runs out of registers and moves accumulators about (bfloat16, D = 72,
// one core of an EPYC at 3.7 GHz: 729 x 729 logits of 16 heads took 9.3 ms instead of 8.3, all told).
template <class Product>
__attribute__((noinline)) static void multiply_tile(const TileBuffers<Product>& tile, int64_t units, int64_t column,
                                                    Vec* row_max) {
  const auto* keys = tile.keys + column * units;
  Vec dot[kRows][2] = {};
  for (int64_t i = 0; i < units; i++) {
    Vec first, second;
    memcpy(&first, keys + i * kColumns, sizeof first);
    memcpy(&second, keys + i * kColumns + kLanes, sizeof second);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) {
      const auto query = tile.queries[i * kRows + r];
      Product::multiply_add(dot[r][0], query, first);
      Product::multiply_add(dot[r][1], query, second);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; r++) {
    float* out = tile.logits + r * tile.padded + column;
    store(out, dot[r][0]);
    store(out + kLanes, dot[r][1]);
    row_max[r] = max(row_max[r], max(dot[r][0], dot[r][1]));
  }
}

// logits -> 2^exponent(logits), zero past S; returns the sum.
template <class Exponent>
static inline float exponentiate(float* x, int64_t S, int64_t padded, const Exponent& exponent) {
  Vec first = {}, second = {};
  for (int64_t j = 0; j < padded; j += kColumns) {
    const Vec a = exp2(exponent(load(x + j))), b = exp2(exponent(load(x + j + kLanes)));
    store(x + j, a);
    store(x + j + kLanes, b);
    if (j + kColumns > S) {
      memset(x + S, 0, static_cast<size_t>(padded - S) * sizeof(float));
      first += load(x + j);
      second += load(x + j + kLanes);
    } else {
      first += a;
      second += b;
    }
  }
  return sum_lanes(first + second);
}

// Turns a tile's logits into unnormalised probabilities; row r's are to be multiplied by weight[r].
__attribute__((noinline)) static void tile_softmax(const ColumnSumTask& task, float* logits, int64_t padded,
                                                   int64_t row, int64_t rows, const Vec* row_max, float* weight) {
  // Where a row's largest exponent is above this, its rounding would count: differences are taken before they are
  // scaled.  So they are in a row without a finite maximum: it has no softmax, and becomes NaN.
  constexpr float kLargest = 0x1p20f;
  const float scale = task.scale < 0 ? -task.scale : task.scale, factor = scale * kLog2E;
  const auto sum_of = [&](int64_t r, const auto& exponent) {
    return exponentiate(logits + r * padded, task.S, padded, exponent);
  };
  for (int64_t r = 0; r < kRows; r++) {
    if (r >= rows) {
      weight[r] = 0;
    } else if (task.lse) {
      const float shift = task.lse[row + r] * kLog2E;
      sum_of(r, [=](Vec x) { return x * factor - shift; });
      weight[r] = 1;
    } else {
      const float most = max_lanes(row_max[r]), shift = most * factor;
      const bool small = shift < kLargest && shift > -kLargest;
      weight[r] = 1 / (small ? sum_of(r, [=](Vec x) { return x * factor - shift; })
                             : sum_of(r, [=](Vec x) { return (x - most) * scale * kLog2E; }));
    }
  }
}

static inline void add_tile(const float* logits, int64_t S, int64_t padded, const float* weight, int64_t rows,
                            float* out) {
  for (int64_t j = 0; j < S; j += kLanes) {
    Vec sum = load_up_to(out + j, S - j);
    for (int64_t r = 0; r < rows; r++) sum += load(logits + r * padded + j) * weight[r];
    store_up_to(out + j, sum, S - j);
  }
}

template <class T, class Product>
static void column_sums_of(const ColumnSumTask& task, int64_t chunk_begin, int64_t chunk_end, float* out,
                           void* workspace) {
  const int64_t S = task.S, units = Product::units(task.D);
  const int64_t tiles = (S + kRows - 1) / kRows, chunk = (tiles + kQueryChunks - 1) / kQueryChunks;
  const TileBuffers<Product> tile(workspace, S, task.D);
  pack_keys<T>(task, tile);
  for (int64_t c = chunk_begin; c < chunk_end; c++, out += S) {
    memset(out, 0, static_cast<size_t>(S) * sizeof(float));
    for (int64_t t = c * chunk; t < (c + 1) * chunk && t < tiles; t++) {
      const int64_t row = t * kRows, rows = S - row < kRows ? S - row : kRows;
      pack_queries<T>(task, row, rows, tile);
      Vec row_max[kRows];
      for (auto& v : row_max) v = broadcast(-kInfinity);
      for (int64_t j = 0; j < tile.padded; j += kColumns) multiply_tile(tile, units, j, row_max);
      float weight[kRows];
      tile_softmax(task, tile.logits, tile.padded, row, rows, row_max, weight);
      add_tile(tile.logits, S, tile.padded, weight, rows, out);
    }
  }
}

static void column_sums(const ColumnSumTask& task, int64_t begin, int64_t end, float* out, void* workspace) {
  dispatch(task.dtype,
           [&]<class T>() { column_sums_of<T, typename ProductOf<T>::Type>(task, begin, end, out, workspace); });
}

}  // namespace visionzip::cpu::VISIONZIP_ISA
