// Which target each token joins: the highest cosine similarity, lower target first, NaN below every number.
#pragma once

#include "cpu/kernels/kernels.h"
#include "cpu/kernels/simd.h"

namespace visionzip::cpu::VISIONZIP_ISA {

using namespace visionzip::VISIONZIP_ISA;

constexpr int kTokens = 8;  // tokens whose similarities to a vector of targets stay in registers

// Lengths in double: a float's square neither overflows nor vanishes there.  A target of length zero stays zero, and so
// does its similarity to everything.
static void pack_directions(const float* metric, const int64_t* targets, int64_t m, int64_t D, float* out) {
  const int64_t blocks = (m + kLanes - 1) / kLanes;
  memset(out, 0, static_cast<size_t>(blocks * kLanes * D) * sizeof(float));
  for (int64_t t = 0; t < m; t++) {
    const float* row = metric + targets[t] * D;
    double square = 0;
    for (int64_t d = 0; d < D; d++) square += static_cast<double>(row[d]) * row[d];
    const double inverse = square > 0 ? 1 / __builtin_sqrt(square) : square;  // a NaN stays one
    float* block = out + t / kLanes * kLanes * D + t % kLanes;
    for (int64_t d = 0; d < D; d++) block[d * kLanes] = static_cast<float>(row[d] * inverse);
  }
}

struct Nearest {
  float similarity;
  int64_t target;
};

// The lanes' first best, if it is above the best so far.
static inline void take_best(Vec similarity, int64_t first_target, Nearest& nearest) {
  const float best = max_number(similarity);
  if (nearest.target >= 0 && !(best > nearest.similarity)) return;
  // Compared with the original: -inf is a number, the NaN that it replaces in `best` is none.
  const int lane = first_lane(similarity == broadcast(best));
  if (lane < kLanes) nearest = {best, first_target + lane};
}

template <int kCount>
static inline void assign_block(const AssignTask& task, const int64_t* tokens) {
  const float* row[kCount];
  Nearest nearest[kCount];
  for (int i = 0; i < kCount; i++) {
    row[i] = task.metric + tokens[i] * task.D;
    nearest[i] = {-kInfinity, -1};
  }
  for (int64_t first = 0; first < task.m; first += kLanes) {
    Vec start = {};
    for (int i = 0; i < kLanes; i++) start[i] = first + i < task.m ? 0.f : __builtin_nanf("");  // no target there
    Vec dot[kCount];
    for (int i = 0; i < kCount; i++) dot[i] = start;
    const float* directions = task.directions + first * task.D;
    for (int64_t d = 0; d < task.D; d++) {
      const Vec direction = load(directions + d * kLanes);
      for (int i = 0; i < kCount; i++) dot[i] += row[i][d] * direction;
    }
    for (int i = 0; i < kCount; i++) take_best(dot[i], first, nearest[i]);
  }
  for (int i = 0; i < kCount; i++) {
    task.assignment[tokens[i]] = task.first_row + (nearest[i].target < 0 ? 0 : nearest[i].target);
  }
}

static void assign(const AssignTask& task, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; end - i >= kTokens; i += kTokens) assign_block<kTokens>(task, task.tokens + i);
  for (; i < end; i++) assign_block<1>(task, task.tokens + i);
}

}  // namespace visionzip::cpu::VISIONZIP_ISA
