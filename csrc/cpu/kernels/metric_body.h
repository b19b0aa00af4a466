// Keys -> metric and CLS logits, in one read.
#pragma once

#include "cpu/kernels/dispatch.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/simd.h"

namespace visionzip::cpu::VISIONZIP_ISA {

using namespace visionzip::VISIONZIP_ISA;

constexpr int kMetricVectors = 4;  // vectors of channels whose sums over heads stay in registers

// While a token is added, the keys of so many tokens later are fetched into the second-level cache: a processor's own
// prefetching stops at each page, that is at each token or two, and loses count where every head is a stream of its
// own.
constexpr int64_t kTokensAhead = 4;

// Channels of one token from `d` on: kMetricVectors whole vectors, or one with `last` lanes.
struct MetricBlock {
  int64_t token, d, last;
  int64_t ahead;  // elements from this token's keys to those to fetch
};

// One head's keys are added to `sum`; returns their products with the query, lane by lane.
template <class T, int kVectors, bool kLogits>
static inline Vec add_head(const T* keys, const float* query, const MetricBlock& block, Vec (&sum)[kVectors]) {
  Vec dot = {};
  for (int v = 0; v < kVectors; v++) {
    if (v * kLanes * static_cast<int64_t>(sizeof(T)) % kCacheLine == 0) fetch(keys + block.ahead + v * kLanes);
    const int64_t n = kVectors == 1 ? block.last : kLanes;
    const Vec key = load_up_to(keys + v * kLanes, n);
    sum[v] += key;
    if (kLogits) dot += key * load_up_to(query + v * kLanes, n);
  }
  return dot;
}

// The logits of `count` heads, from the block's products.
static inline void add_logits(const MetricTask& task, const MetricBlock& block, int64_t first_head, int64_t count,
                              Vec (&dots)[kLanes]) {
  for (int64_t i = count; i < kLanes; i++) dots[i] = Vec{};
  float logits[kLanes];
  store(logits, sum_lanes_of_each(dots) * task.scale);
  float* out = task.logits + first_head * task.S + block.token;
  for (int64_t i = 0; i < count; i++, out += task.S) *out = (block.d ? *out : 0.f) + logits[i];
}

template <class T, int kVectors, bool kLogits>
static inline void metric_block(const MetricTask& task, const T* token_keys, const MetricBlock& block) {
  const int64_t heads = task.keys.heads, D = task.keys.D;
  Vec sum[kVectors] = {};
  for (int64_t first = 0; first < heads; first += kLanes) {
    const int64_t count = heads - first < kLanes ? heads - first : kLanes;
    Vec dots[kLanes];
    for (int64_t i = 0; i < count; i++) {
      const int64_t h = first + i;
      const float* query = kLogits ? task.query + h * D + block.d : nullptr;
      dots[i] = add_head<T, kVectors, kLogits>(token_keys + h * task.keys.head_stride + block.d, query, block, sum);
    }
    if (kLogits) add_logits(task, block, first, count, dots);
  }
  float* out = task.metric + block.token * D + block.d;
  for (int v = 0; v < kVectors; v++) store_up_to(out + v * kLanes, sum[v], kVectors == 1 ? block.last : kLanes);
}

template <class T, bool kLogits>
static void metric_rows(const MetricTask& task, int64_t begin, int64_t end) {
  const int64_t D = task.keys.D;
  for (int64_t token = begin; token < end; token++) {
    const T* keys = static_cast<const T*>(task.keys.keys) + token * task.keys.token_stride;
    const int64_t ahead = (token + kTokensAhead < end ? kTokensAhead : 0) * task.keys.token_stride;
    int64_t d = 0;
    for (; D - d >= kMetricVectors * kLanes; d += kMetricVectors * kLanes) {
      metric_block<T, kMetricVectors, kLogits>(task, keys, {token, d, kLanes, ahead});
    }
    for (; d < D; d += kLanes) {
      metric_block<T, 1, kLogits>(task, keys, {token, d, D - d < kLanes ? D - d : kLanes, ahead});
    }
  }
}

template <class T>
static void metric_rows(const MetricTask& task, int64_t begin, int64_t end) {
  if (task.query) {
    metric_rows<T, true>(task, begin, end);
  } else {
    metric_rows<T, false>(task, begin, end);
  }
}

static void metric(const MetricTask& task, int64_t begin, int64_t end) {
  dispatch(task.keys.dtype, [&]<class T>() { metric_rows<T>(task, begin, end); });
}

template <class T>
static void widen_row(const T* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += kLanes) store_up_to(out + i, load_up_to(x + i, n - i), n - i);
}

static void widen(const void* x, DType dtype, int64_t n, float* out) {
  dispatch(dtype, [&]<class T>() { widen_row(static_cast<const T*>(x), n, out); });
}

}  // namespace visionzip::cpu::VISIONZIP_ISA
