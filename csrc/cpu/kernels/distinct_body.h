// The policy "distinct": one token after another, by score times what no kept token's key resembles.
#pragma once

#include "cpu/kernels/kernels.h"
#include "cpu/kernels/simd.h"

namespace visionzip::cpu::VISIONZIP_ISA {

using namespace visionzip::VISIONZIP_ISA;

constexpr int kBlocks = 8;  // vectors of candidates whose similarities to a kept token stay in registers

// Up to kLanes rows of D channels -> D vectors of lanes.
static inline void transpose_block(const float* rows, int64_t count, int64_t D, float* block) {
  for (int64_t d = 0; d < D; d += kLanes) {
    Vec tile[kLanes];
    for (int64_t i = 0; i < kLanes; i++) tile[i] = i < count ? load_up_to(rows + i * D + d, D - d) : Vec{};
    transpose(tile);
    for (int64_t i = 0; i < kLanes && d + i < D; i++) store(block + (d + i) * kLanes, tile[i]);
  }
}

// Lengths in double: a float's square neither overflows nor vanishes there.  What has no direction, being zero or not
// finite, gets a NaN, and with it every similarity to it.
static inline void scale_to_units(float* block, int64_t D) {
  DoubleVec inverse = {};
  for (int64_t d = 0; d < D; d++) {
    const DoubleVec x = __builtin_convertvector(load(block + d * kLanes), DoubleVec);
    inverse += x * x;
  }
  for (int i = 0; i < kLanes; i++) inverse[i] = 1 / __builtin_sqrt(inverse[i]);
  for (int64_t d = 0; d < D; d++) {
    const DoubleVec x = __builtin_convertvector(load(block + d * kLanes), DoubleVec);
    store(block + d * kLanes, __builtin_convertvector(x * inverse, Vec));
  }
}

static void pack_units(const float* metric, int64_t count, int64_t D, float* units) {
  for (int64_t first = 0; first < count; first += kLanes) {
    transpose_block(metric + first * D, count - first, D, units + first * D);
    scale_to_units(units + first * D, D);
  }
}

// For each lane the first candidate of the highest rank.
struct Leaders {
  IntVec rank, candidate;
};

// A candidate's rank: the order of products as that of integers, -0 as +0, NaN below every number, and what is taken,
// its resemblance being NaN, below all.
static inline IntVec rank_of(Vec score, Vec resemblance) {
  const Vec product = score * (1.f - resemblance) + 0.f;
  const IntVec bits = reinterpret_cast<IntVec>(product), ordered = bits ^ ((bits >> 31) & 0x7fffffff);
  const IntVec is_number = product == product, is_open = resemblance == resemblance;
  const IntVec lowest = IntVec{} + INT32_MIN;
  return (ordered & is_number) | ((lowest - is_open) & ~is_number);
}

static inline void take_leaders(const DistinctTask& task, int64_t first, Leaders& leaders) {
  const int64_t n = task.candidates - first;
  const IntVec rank = rank_of(load_up_to(task.scores + first, n), load(task.resemblance + first));
  const IntVec is_higher = rank > leaders.rank;
  leaders.rank = (rank & is_higher) | (leaders.rank & ~is_higher);
  leaders.candidate = ((IntVec{} + static_cast<int32_t>(first)) & is_higher) | (leaders.candidate & ~is_higher);
}

static inline int64_t first_of(const Leaders& leaders) {
  int32_t rank[kLanes], candidate[kLanes];
  memcpy(rank, &leaders.rank, sizeof rank);
  memcpy(candidate, &leaders.candidate, sizeof candidate);
  int best = 0;
  for (int i = 1; i < kLanes; i++) {
    const bool is_before = candidate[i] + i < candidate[best] + best;
    if (rank[i] > rank[best] || (rank[i] == rank[best] && is_before)) best = i;
  }
  return candidate[best] + best;
}

// Candidates from `first` on, kCount vectors of them, against the token that was taken last.
template <int kCount>
static inline void resemble(const DistinctTask& task, const float* taken, int64_t first, Leaders& leaders) {
  Vec similarity[kCount] = {};
  const float* units = task.units + first * task.D;
  for (int64_t d = 0; d < task.D; d++) {
    for (int i = 0; i < kCount; i++) similarity[i] += load(units + (i * task.D + d) * kLanes) * taken[d];
  }
  for (int i = 0; i < kCount; i++) {
    float* resemblance = task.resemblance + first + i * kLanes;
    // In this order of operands a similarity of NaN counts as none, and a resemblance of NaN, which says that the
    // candidate is taken, stays one.
    store(resemblance, min(broadcast(1.f), max(similarity[i], load(resemblance))));
    take_leaders(task, first + i * kLanes, leaders);
  }
}

static void keep_distinct(const DistinctTask& task) {
  const int64_t n = task.candidates, D = task.D;
  constexpr float kTaken = __builtin_nanf("");
  const Leaders nobody = {IntVec{} + INT32_MIN, IntVec{}};
  Leaders leaders = nobody;
  for (int64_t first = 0; first < n; first += kLanes) {
    Vec start = {};
    for (int i = 0; i < kLanes; i++) start[i] = first + i < n ? 0.f : kTaken;
    store(task.resemblance + first, start);
    take_leaders(task, first, leaders);
  }
  for (int64_t step = 0; step < task.count; step++) {
    const int64_t best = first_of(leaders);
    task.kept[step] = best;
    task.resemblance[best] = kTaken;
    const float* unit = task.units + best / kLanes * kLanes * D + best % kLanes;
    for (int64_t d = 0; d < D; d++) task.unit[d] = unit[d * kLanes];
    leaders = nobody;
    int64_t first = 0;
    for (; n - first > (kBlocks - 1) * kLanes; first += kBlocks * kLanes) {
      resemble<kBlocks>(task, task.unit, first, leaders);
    }
    for (; first < n; first += kLanes) resemble<1>(task, task.unit, first, leaders);
  }
}

}  // namespace visionzip::cpu::VISIONZIP_ISA
