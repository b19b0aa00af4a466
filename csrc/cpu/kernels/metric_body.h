// Keys -> metric and CLS logits, in one read.
#pragma once

#include "cpu/kernels/dispatch.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/simd.h"

namespace visionzip::cpu::VISIONZIP_ISA {

using namespace visionzip::VISIONZIP_ISA;

constexpr int kMetricVectors = 4;  // vectors of channels whose sums over heads stay in registers

// Channels [d, d + (kVectors - 1) * kLanes + last) of one token.
template <class T, int kVectors, bool kLogits>
static inline void metric_block(const MetricTask& task, const T* token_keys, int64_t token, int64_t d, int64_t last) {
  Vec sum[kVectors] = {};
  for (int64_t h = 0; h < task.keys.heads; h++) {
    const T* keys = token_keys + h * task.keys.head_stride + d;
    Vec dot = {};
    for (int v = 0; v < kVectors; v++) {
      const int64_t n = v == kVectors - 1 ? last : kLanes;
      const Vec key = load_up_to(keys + v * kLanes, n);
      sum[v] += key;
      if (kLogits) dot += key * load_up_to(task.query + h * task.keys.D + d + v * kLanes, n);
    }
    if (kLogits) {
      float& logit = task.logits[h * task.S + token];
      logit = (d ? logit : 0.f) + sum_lanes(dot) * task.scale;
    }
  }
  float* out = task.metric + token * task.keys.D + d;
  for (int v = 0; v < kVectors; v++) store_up_to(out + v * kLanes, sum[v], v == kVectors - 1 ? last : kLanes);
}

template <class T, bool kLogits>
static void metric_rows(const MetricTask& task, int64_t begin, int64_t end) {
  const int64_t D = task.keys.D;
  for (int64_t token = begin; token < end; token++) {
    const T* keys = static_cast<const T*>(task.keys.keys) + token * task.keys.token_stride;
    int64_t d = 0;
    for (; D - d >= kMetricVectors * kLanes; d += kMetricVectors * kLanes) {
      metric_block<T, kMetricVectors, kLogits>(task, keys, token, d, kLanes);
    }
    for (; d < D; d += kLanes) {
      metric_block<T, 1, kLogits>(task, keys, token, d, D - d < kLanes ? D - d : kLanes);
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
