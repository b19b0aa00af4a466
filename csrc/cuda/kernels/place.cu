// Where packed sequences lie, and the order to work on them in.
#include <algorithm>

#include "common/rounding.h"
#include "cuda/kernels/device_assert.cuh"
#include "cuda/kernels/launch.h"
#include "cuda/kernels/place.h"
#include "cuda/kernels/warp.cuh"

namespace visionzip::cuda {

namespace {

struct Budget {
  int32_t k, m, first_row, first_kept;
};

// Budgets travel as kernel parameters, of which there is room for 4 KiB: a copy from the host's memory could wait for
// the GPU, and could not be captured into a graph.
constexpr int kBudgets = 240;

// Sorting compares every sequence with every other.  So many are balanced whatever their order.
constexpr int kMostSorted = 4096;

constexpr int kPlaceThreads = 128;

struct PlaceParams {
  Packing packing;
  PlacedSequences placed;
  int32_t first, end;  // the sequences that this launch places
  bool alike;          // all have the budget of the first
  Budget budgets[kBudgets];
};

__device__ __forceinline__ Budget budget_of(const PlaceParams& p, int i) {
  if (!p.alike) return p.budgets[i - p.first];
  const int k = p.budgets[0].k, m = p.budgets[0].m;
  return {k, m, i * (k + m), i * k};
}

// How many sequences are to be worked on before sequence i.
__device__ __forceinline__ int rank_of(const Packing& packing, int i, int lane) {
  if (packing.count > kMostSorted) return i;
  const int own = packing.cu_seqlens[i + 1] - packing.cu_seqlens[i];
  int rank = 0;
  for (int j = lane; j < packing.count; j += 32) {
    const int other = packing.cu_seqlens[j + 1] - packing.cu_seqlens[j];
    rank += other > own || (other == own && j < i);
  }
  return static_cast<int>(reduce_sum(static_cast<unsigned>(rank)));
}

// A warp for each sequence.
__global__ void __launch_bounds__(kPlaceThreads) place_kernel(const __grid_constant__ PlaceParams p) {
  const int i = p.first + static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / 32);
  if (i >= p.end) return;
  const int lane = static_cast<int>(threadIdx.x) % 32, rank = rank_of(p.packing, i, lane);
  if (lane > 0) return;
  const int start = p.packing.cu_seqlens[i], stop = p.packing.cu_seqlens[i + 1], last = p.packing.count - 1;
  const Budget budget = budget_of(p, i);
  device_assert(start >= 0 && start <= stop && stop <= p.packing.tokens && (i > 0 || start == 0) &&
                    (i < last || stop == p.packing.tokens),
                "visionzip: cu_seqlens rises from 0 to T");
  device_assert(stop - start <= p.packing.longest, "visionzip: no image has more than max_seqlen tokens");
  const int rowless = stop > start ? p.packing.rowless : 0;
  device_assert(budget.k + budget.m <= stop - start - rowless, "visionzip: every image has room for its k + m");
  p.placed.sequences[i] = {start, stop - start, budget.k, budget.m, budget.first_row, budget.first_kept};
  p.placed.order[rank] = i;
  if (!p.placed.row_starts) return;
  p.placed.row_starts[i] = budget.first_row;
  if (i == last) p.placed.row_starts[i + 1] = budget.first_row + budget.k + budget.m;
}

bool all_alike(const std::vector<int64_t>& numbers) {
  return std::all_of(numbers.begin(), numbers.end(), [&](int64_t x) { return x == numbers[0]; });
}

}  // namespace

cudaError_t launch_place(const Packing& packing, const std::vector<int64_t>& k, const std::vector<int64_t>& m,
                         const PlacedSequences& placed, cudaStream_t stream) {
  if (packing.count == 0) {
    return placed.row_starts ? cudaMemsetAsync(placed.row_starts, 0, sizeof(int32_t), stream) : cudaSuccess;
  }
  PlaceParams p{packing, placed, 0, 0, all_alike(k) && all_alike(m), {}};
  int32_t row = 0, kept = 0;
  for (; p.end < packing.count; p.first = p.end) {
    p.end = p.alike ? packing.count : std::min(packing.count, p.first + kBudgets);
    for (int32_t i = p.first; i < std::min(p.end, p.first + kBudgets); i++) {
      Budget& budget = p.budgets[i - p.first];
      budget = {static_cast<int32_t>(k[static_cast<size_t>(i)]), static_cast<int32_t>(m[static_cast<size_t>(i)]), row,
                kept};
      row += budget.k + budget.m;
      kept += budget.k;
    }
    const int32_t count = p.end - p.first;
    const LaunchShape shape{static_cast<unsigned>(ceil_divide(count, kPlaceThreads / 32)), kPlaceThreads};
    if (const cudaError_t error = launch(place_kernel, shape, stream, p)) return error;
  }
  return cudaSuccess;
}

}  // namespace visionzip::cuda
