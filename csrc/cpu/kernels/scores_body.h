// Scores from rows of attention that somebody else computed, and from the CLS row's logits.
#pragma once

#include "cpu/kernels/dispatch.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/simd.h"

namespace visionzip::cpu::VISIONZIP_ISA {

using namespace visionzip::VISIONZIP_ISA;

// Rows are added in blocks of this many, then the blocks, then the heads: a sum of thousands of small probabilities
// would otherwise lose the last digits that tell two tokens apart.
constexpr int64_t kRowBlock = 64;

template <class T>
static inline Vec sum_of_column(const AttentionRows& a, int64_t column, int64_t n) {
  Vec total = {};
  for (int64_t h = 0; h < a.heads; h++) {
    const T* head = static_cast<const T*>(a.attn) + h * a.head_stride + column;
    Vec head_sum = {};
    for (int64_t row = 0; row < a.rows; row += kRowBlock) {
      const int64_t stop = a.rows - row < kRowBlock ? a.rows : row + kRowBlock;
      Vec block = {};
      for (int64_t i = row; i < stop; i++) block += load_up_to(head + i * a.row_stride, n);
      head_sum += block;
    }
    total += head_sum;
  }
  return total;
}

template <class T>
static void add_rows(const AttentionRows& a, float factor, float* scores, int64_t begin, int64_t end) {
  for (int64_t j = begin; j < end; j += kLanes) {
    store_up_to(scores + j, sum_of_column<T>(a, j, end - j) * factor, end - j);
  }
}

static void add_rows(const AttentionRows& a, float factor, float* scores, int64_t begin, int64_t end) {
  dispatch(a.dtype, [&]<class T>() { add_rows<T>(a, factor, scores, begin, end); });
}

static inline float max_of_row(const float* x, int64_t n) {
  Vec most = broadcast(-kInfinity);
  int64_t i = 0;
  for (; n - i >= kLanes; i += kLanes) most = max(most, load(x + i));
  float m = max_lanes(most);
  for (; i < n; i++) m = x[i] > m || x[i] != x[i] ? x[i] : m;
  return m;
}

// probabilities = 2^((logits - shift) * log2 e), in place; returns their sum.
static inline float exp_row(float* x, int64_t n, float shift) {
  Vec sum = {};
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vec p = exp2((load_up_to(x + i, n - i) - shift) * kLog2E);
    store_up_to(x + i, p, n - i);
    sum += n - i >= kLanes ? p : load_first(x + i, n - i);
  }
  return sum_lanes(sum);
}

static void softmax_sum(float* logits, const float* lse, int64_t lse_head_stride, int64_t heads, int64_t S,
                        float* scores) {
  memset(scores, 0, static_cast<size_t>(S) * sizeof(float));
  for (int64_t h = 0; h < heads; h++) {
    float* row = logits + h * S;
    float factor = 1.f;
    if (lse) {
      exp_row(row, S, lse[h * lse_head_stride]);
    } else {
      factor = 1.f / exp_row(row, S, max_of_row(row, S));
    }
    for (int64_t j = 0; j < S; j += kLanes) {
      store_up_to(scores + j, load_up_to(scores + j, S - j) + load_up_to(row + j, S - j) * factor, S - j);
    }
  }
}

}  // namespace visionzip::cpu::VISIONZIP_ISA
