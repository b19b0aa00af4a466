// Rows of the output from rows of the input, and the adjoint of that.
#pragma once

#include "cpu/kernels/dispatch.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/simd.h"

namespace visionzip::cpu::VISIONZIP_ISA {

using namespace visionzip::VISIONZIP_ISA;

// While rows are read, those of so many later are fetched: a processor's own prefetching stops at each page, that is at
// each row or two.
constexpr int64_t kRowsAhead = 4;

// Rows that are added to a sum together, so that the sum is loaded and stored once for all of them.
constexpr int kRowsAtOnce = 4;

// sum += x[0], then x[1] and so on; `ahead`: the rows to fetch.
template <int kRows, class T>
static inline void add_rows_at(const T* const (&x)[kRows], const T* const (&ahead)[kRows], float* sum, int64_t n) {
  constexpr int64_t kElements = kCacheLine / static_cast<int64_t>(sizeof(T)),
                    kStep = kElements > kLanes ? kElements : kLanes;
  int64_t c = 0;
  for (; n - c >= kStep; c += kStep) {
    for (int r = 0; r < kRows; r++) fetch(ahead[r] + c);
    for (int64_t i = c; i < c + kStep; i += kLanes) {
      Vec total = load(sum + i);
      for (int r = 0; r < kRows; r++) total += load(x[r] + i);
      store(sum + i, total);
    }
  }
  for (; c < n; c += kLanes) {
    Vec total = load_up_to(sum + c, n - c);
    for (int r = 0; r < kRows; r++) total += load_up_to(x[r] + c, n - c);
    store_up_to(sum + c, total, n - c);
  }
}

// Tokens [from, from + kRows) of the list are added.
template <int kRows, class T>
static inline void add_tokens(const MergeTask& task, const T* x, int64_t from, float* sum, int64_t n) {
  const T *rows[kRows], *ahead[kRows];
  for (int r = 0; r < kRows; r++) {
    const int64_t later = from + r + kRowsAhead < task.merged ? from + r + kRowsAhead : from + r;
    rows[r] = x + task.tokens[from + r] * task.token_stride;
    ahead[r] = x + task.tokens[later] * task.token_stride;
  }
  add_rows_at<kRows>(rows, ahead, sum, n);
}

// out = (target + sum / sum_divisor) / divisor
template <class T>
static inline void finish_row(const T* target, const float* sum, float sum_divisor, float divisor, T* out, int64_t n) {
  for (int64_t c = 0; c < n; c += kLanes) {
    const Vec total = load_up_to(target + c, n - c) + load_up_to(sum + c, n - c) / sum_divisor;
    store_up_to(out + c, total / divisor, n - c);
  }
}

template <class T>
static void copy_kept(const MergeTask& task, const T* x, T* out, int64_t n) {
  const int64_t last = task.rows.kept_end;
  for (int64_t r = task.rows.kept_begin; r < last; r++) {
    const T* ahead = x + task.kept[r + kRowsAhead < last ? r + kRowsAhead : r] * task.token_stride;
    for (int64_t c = 0; c < n; c += kCacheLine / static_cast<int64_t>(sizeof(T))) fetch(ahead + c);
    memcpy(out + r * task.C, x + task.kept[r] * task.token_stride, static_cast<size_t>(n) * sizeof(T));
  }
}

// Target by target, the tokens of each in ascending order: the sum stays in the first-level cache.
template <class T>
static void merge_slice(const MergeTask& task, int64_t begin, int64_t end, float* sum) {
  const int64_t width = end - begin;
  const T* x = static_cast<const T*>(task.x) + begin;
  T* out = static_cast<T*>(task.out) + begin;
  copy_kept(task, x, out, width);
  int64_t i = 0;
  for (int64_t t = task.rows.target_begin; t < task.rows.target_end; t++) {
    const int64_t last = i + task.counts[t];
    memset(sum, 0, static_cast<size_t>(width) * sizeof(float));
    for (; last - i >= kRowsAtOnce; i += kRowsAtOnce) add_tokens<kRowsAtOnce>(task, x, i, sum, width);
    for (; i < last; i++) add_tokens<1>(task, x, i, sum, width);
    const float n = static_cast<float>(task.counts[t]);
    const bool mean = task.mode == MergeMode::kMean;
    const float sum_divisor = mean || n == 0 ? 1.f : n, divisor = mean ? n + 1 : 1.f;
    finish_row(x + task.targets[t] * task.token_stride, sum, sum_divisor, divisor, out + (task.k + t) * task.C, width);
  }
}

static void merge(const MergeTask& task, int64_t begin, int64_t end, float* sum) {
  dispatch(task.dtype, [&]<class T>() { merge_slice<T>(task, begin, end, sum); });
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
