// Column sums of softmax(scale * Q K^T) of one head, by tiles of query rows: nothing of size (S, S) exists.
//
// A tile's logits (kRows, S) are computed by a register-blocked product of kRows queries with two vectors of keys,
// turned into probabilities where they lie, and added to the sums.  Keys are packed once: blocks of kColumns keys,
// transposed, so that a load takes one channel (or, for the bfloat16 dot product, a pair of channels) of kColumns keys.
#pragma once

#include "kernels.h"
#include "scores_body.h"
#include "simd.h"

namespace visionzip::cpu::VISIONZIP_ISA {

using namespace visionzip::VISIONZIP_ISA;

#if defined(__AVX512F__)
constexpr int kRows = 12;  // 24 accumulators, two keys, one query: 27 of 32 registers
#else
constexpr int kRows = 6;  // 12 accumulators, two keys, one query: 15 of 16 registers
#endif
constexpr int kColumns = 2 * kLanes;

static inline float widen_one(const float* x) { return *x; }
static inline float widen_one(const BFloat16* x) {
  const uint32_t bits = static_cast<uint32_t>(x->bits) << 16;
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}
static inline float widen_one(const Half* x) { return load_first(x, 1)[0]; }

// Operands widened to float.
template <class T>
struct FloatProduct {
  using Unit = float;
  static int64_t units(int64_t D) { return D; }
  static Unit unit(const T* x, int64_t i, int64_t /*D*/) { return widen_one(x + i); }
  static Unit negative(Unit x) { return -x; }
  static inline void multiply_add(Vec& sum, Unit query, Vec keys) { sum += query * keys; }
  static inline Vec load_units(const Unit* p) { return load(p); }
};

#if defined(__AVX512BF16__)
// Pairs of bfloat16 channels, multiplied and added in float by one instruction.
struct PairProduct {
  using Unit = uint32_t;
  static int64_t units(int64_t D) { return (D + 1) / 2; }
  static Unit unit(const BFloat16* x, int64_t i, int64_t D) {
    const Unit high = 2 * i + 1 < D ? x[2 * i + 1].bits : 0;
    return x[2 * i].bits | high << 16;
  }
  static Unit negative(Unit x) { return x ^ 0x80008000u; }
  static inline void multiply_add(Vec& sum, Unit query, __m512i keys) {
    const __m512i pair = _mm512_set1_epi32(static_cast<int32_t>(query));
    sum = reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(pair),
                                                 reinterpret_cast<__m512bh>(keys)));
  }
  static inline __m512i load_units(const Unit* p) { return _mm512_loadu_si512(p); }
};
#endif

// The part of a head's work that does not depend on the tile, carved from the workspace.
template <class Product>
struct TileBuffers {
  using Unit = typename Product::Unit;
  Unit* keys;      // (blocks, units, kColumns)
  Unit* queries;   // (kRows, units)
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
  for (int64_t j = 0; j < to.padded; j++) {
    const T* key = static_cast<const T*>(task.keys) + (j < task.S ? j : task.S - 1) * task.key_stride;
    auto* out = to.keys + j / kColumns * kColumns * units + j % kColumns;
    for (int64_t i = 0; i < units; i++) out[i * kColumns] = Product::unit(key, i, task.D);
  }
}

// A negative scale is taken into the queries' sign, so that the largest logit is the largest exponent.
template <class T, class Product>
static void pack_queries(const ColumnSumTask& task, int64_t row, int64_t rows, const TileBuffers<Product>& to) {
  const int64_t units = Product::units(task.D);
  for (int64_t r = 0; r < kRows; r++) {
    const T* query = static_cast<const T*>(task.queries) + (row + (r < rows ? r : 0)) * task.query_stride;
    for (int64_t i = 0; i < units; i++) {
      const auto unit = Product::unit(query, i, task.D);
      to.queries[r * units + i] = task.scale < 0 ? Product::negative(unit) : unit;
    }
  }
}

template <class Product>
static inline void multiply_tile(const TileBuffers<Product>& tile, int64_t units, int64_t column, Vec* row_max) {
  const auto* keys = tile.keys + column * units;
  Vec dot[kRows][2] = {};
  for (int64_t i = 0; i < units; i++) {
    const auto first = Product::load_units(keys + i * kColumns);
    const auto second = Product::load_units(keys + i * kColumns + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) {
      const auto query = tile.queries[r * units + i];
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

// logits -> 2^(logits * factor - shift), zero past S; returns the sum.
static inline float exponentiate(float* x, int64_t S, int64_t padded, float factor, float shift) {
  Vec first = {}, second = {};
  for (int64_t j = 0; j < padded; j += kColumns) {
    const Vec a = exp2(load(x + j) * factor - shift), b = exp2(load(x + j + kLanes) * factor - shift);
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
static inline void tile_softmax(const ColumnSumTask& task, float* logits, int64_t padded, int64_t row, int64_t rows,
                                const Vec* row_max, float* weight) {
  const float factor = (task.scale < 0 ? -task.scale : task.scale) * kLog2E;
  for (int64_t r = 0; r < kRows; r++) {
    if (r >= rows) {
      weight[r] = 0;
    } else if (task.lse) {
      exponentiate(logits + r * padded, task.S, padded, factor, task.lse[row + r] * kLog2E);
      weight[r] = 1;
    } else {
      const float most = max_lanes(row_max[r]) * factor;
      const bool finite = most - most == 0;
      weight[r] = 1 / exponentiate(logits + r * padded, task.S, padded, factor, finite ? most : 0.f);
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
  switch (task.dtype) {
    case DType::kFloat32:
      return column_sums_of<float, FloatProduct<float>>(task, begin, end, out, workspace);
    case DType::kFloat16:
      return column_sums_of<Half, FloatProduct<Half>>(task, begin, end, out, workspace);
    case DType::kBFloat16:
#if defined(__AVX512BF16__)
      return column_sums_of<BFloat16, PairProduct>(task, begin, end, out, workspace);
#else
      return column_sums_of<BFloat16, FloatProduct<BFloat16>>(task, begin, end, out, workspace);
#endif
  }
}

}  // namespace visionzip::cpu::VISIONZIP_ISA
