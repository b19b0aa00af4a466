// Rows of the output from rows of the input, and the adjoint of that.
#pragma once

#include "cpu/kernels/dispatch.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/simd.h"

namespace visionzip::cpu::VISIONZIP_ISA {

using namespace visionzip::VISIONZIP_ISA;

// While a row is added, the row of so many tokens later is fetched: a processor's own prefetching stops at each page,
// that is at each row or two.  577 x 1024 from memory on one core (EPYC, 2.6 GHz): float32 131 us against 159 without,
// bfloat16 81 against 110; 1 and 8 rows ahead gain less.  Into the second-level cache, which has more fetches under way
// than the first: two cores take 104 us for float32 and 61 us for bfloat16, against 122 and 82.
constexpr int64_t kAhead = 4;

template <class T>
static inline void add_row(const T* x, const T* ahead, float* sum, int64_t n) {
  int64_t c = 0;
  for (; n - c >= kLanes; c += kLanes) {
    __builtin_prefetch(ahead + c, 0, 2);
    store(sum + c, load(sum + c) + load(x + c));
  }
  if (c < n) store_first(sum + c, load_first(sum + c, n - c) + load_first(x + c, n - c), n - c);
}

// out = (target + sum / sum_divisor) / divisor
template <class T>
static inline void finish_row(const T* target, const float* sum, float sum_divisor, float divisor, T* out, int64_t n) {
  for (int64_t c = 0; c < n; c += kLanes) {
    const Vec total = load_up_to(target + c, n - c) + load_up_to(sum + c, n - c) / sum_divisor;
    store_up_to(out + c, total / divisor, n - c);
  }
}

// Tokens are added in ascending order: the row of x is streamed, its target's sum stays in cache.
template <class T>
static void merge_slice(const MergeTask& task, int64_t begin, int64_t end, float* sums) {
  const int64_t width = end - begin;
  const T* x = static_cast<const T*>(task.x) + begin;
  T* out = static_cast<T*>(task.out) + begin;
  const size_t bytes = static_cast<size_t>(width) * sizeof(T);
  for (int64_t r = task.rows.kept_begin; r < task.rows.kept_end; r++) {
    memcpy(out + r * task.C, x + task.kept[r] * task.token_stride, bytes);
  }
  const int64_t first = task.rows.target_begin, last = task.rows.target_end;
  const int64_t first_row = task.first_row + task.k + first;
  memset(sums, 0, static_cast<size_t>((last - first) * width) * sizeof(float));
  for (int64_t i = 0; i < task.merged; i++) {
    const int64_t token = task.tokens[i], ahead = task.tokens[i + kAhead < task.merged ? i + kAhead : i];
    add_row(x + token * task.token_stride, x + ahead * task.token_stride,
            sums + (task.assignment[token] - first_row) * width, width);
  }
  for (int64_t t = first; t < last; t++) {
    const float n = static_cast<float>(task.counts[t]);
    const bool mean = task.mode == MergeMode::kMean;
    const float sum_divisor = mean || n == 0 ? 1.f : n, divisor = mean ? n + 1 : 1.f;
    finish_row(x + task.targets[t] * task.token_stride, sums + (t - first) * width, sum_divisor, divisor,
               out + (task.k + t) * task.C, width);
  }
}

static void merge(const MergeTask& task, int64_t begin, int64_t end, float* sums) {
  dispatch(task.dtype, [&]<class T>() { merge_slice<T>(task, begin, end, sums); });
}

template <class T>
static void merge_backward_rows(const MergeBackwardTask& task, int64_t begin, int64_t end) {
  const T* grad = static_cast<const T*>(task.grad);
  T* out = static_cast<T*>(task.out);
  const size_t bytes = static_cast<size_t>(task.C) * sizeof(T);
  for (int64_t token = begin; token < end; token++) {
    T* to = out + token * task.C;
    if (task.assignment[token] < 0) {
      memset(to, 0, bytes);
      continue;
    }
    const T* from = grad + task.assignment[token] * task.row_stride;
    const float weight = task.weights[token];
    if (weight == 1.f) {
      memcpy(to, from, bytes);
      continue;
    }
    for (int64_t c = 0; c < task.C; c += kLanes) {
      store_up_to(to + c, load_up_to(from + c, task.C - c) * weight, task.C - c);
    }
  }
}

static void merge_backward(const MergeBackwardTask& task, int64_t begin, int64_t end) {
  dispatch(task.dtype, [&]<class T>() { merge_backward_rows<T>(task, begin, end); });
}

}  // namespace visionzip::cpu::VISIONZIP_ISA
