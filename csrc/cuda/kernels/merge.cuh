// merge and its adjoint.  One block makes one output row of one image (or, backwards, writes the gradients of the
// tokens of one row): it reads the image's assignment, collects the row's tokens in ascending order, and lets each
// thread add them up for its channels.  So every token's row is read once, sums have one order whatever the launch, and
// there are no atomics.  An assignment that is no decision gives undefined rows, but never an access out of bounds.
#pragma once

#include <cstring>

#include "cuda/kernels/element.cuh"
#include "cuda/kernels/merge.h"
#include "cuda/kernels/ptx.cuh"
#include "cuda/kernels/warp.cuh"

namespace visionzip::cuda {

constexpr int kMergeThreads = 128;
constexpr int kMergeBlocks = 5;  // on a multiprocessor: up to 96 registers a thread, which spills none
constexpr int kMergeWarps = kMergeThreads / 32;
constexpr int kRowLoads = 4;  // of a thread, under way at a time

template <class T, int kCount>
__device__ __forceinline__ void store_pack(T* to, const Pack<T, kCount>& pack) {
  if constexpr (sizeof(pack) == 16) {
    uint4 raw;
    memcpy(&raw, &pack, sizeof(raw));
    ptx::store16(to, raw);
  } else {
    *reinterpret_cast<Pack<T, kCount>*>(to) = pack;
  }
}

// One image of the call: its sizes, and where it begins.
struct MergeImage {
  int64_t S, k, m;
  int64_t of_rows, of_tokens;  // rows and tokens of the images before it
  int64_t in;                  // where it begins in `in`
  int64_t first_row_number;    // what `assignment` counts its rows from
  int64_t step;                // from one target to the next of the tokens that remain
};

// An image whose tokens are merged has none without a row but the first one, if that is CLS, which then does not
// remain.
__device__ __forceinline__ MergeImage with_step(const MergeParams& p, MergeImage z) {
  const bool rowless = z.m > 0 && p.assignment[z.of_tokens] < 0;
  z.step = target_step(z.S - z.k - rowless, z.m);
  return z;
}

// The image that the i-th of all rows belongs to, and which of its rows it is.  Backwards, an image has one more.
__device__ __forceinline__ MergeImage find_image(const MergeParams& p, int64_t i, bool backward, int64_t& row) {
  if (!p.sequences) {
    const int64_t rows = p.k + p.m, b = i / (rows + backward);
    row = i - b * (rows + backward);
    return with_step(p, {p.S, p.k, p.m, b * rows, b * p.S, b * p.image_stride, 0, 0});
  }
  int64_t found = 0, above = p.B;  // the last image whose rows begin at i or before it
  while (above - found > 1) {
    const int64_t middle = (found + above) / 2;
    (p.sequences[middle].first_row + middle * backward <= i ? found : above) = middle;
  }
  const Sequence own = p.sequences[found];
  row = i - own.first_row - found * backward;
  const int64_t in = (backward ? own.first_row : own.first_token) * p.row_stride;
  return with_step(p, {own.tokens, own.k, own.m, own.first_row, own.first_token, in, own.first_row, 0});
}

// An image's tokens are walked in chunks of kMergeThreads; those of the block's row are listed here, in order.
struct RowScan {
  int tokens[kMergeThreads];    // of the current chunk, relative to its first token
  bool targets[kMergeThreads];  // whether a listed token is the row's target, which is not averaged
  int members_of_warp[kMergeWarps], remaining_of_warp[kMergeWarps];
  MergeImage image;  // that the row is of: here, registers are for its channels
  int64_t row;
};

__device__ __forceinline__ void take_row(const MergeParams& p, RowScan& scan, int64_t i, bool backward) {
  __syncthreads();  // the last row's image has been read
  if (threadIdx.x == 0) scan.image = find_image(p, i, backward, scan.row);
  __syncthreads();
}

// The row that a token belongs to; k + m if to none.
__device__ __forceinline__ int64_t row_of(const MergeParams& p, const MergeImage& z, int64_t token) {
  const int64_t own = p.assignment[z.of_tokens + token] - z.first_row_number;
  return own >= 0 && own < z.k + z.m ? own : z.k + z.m;
}

// Collects the current chunk's tokens of `row`; returns how many.  remaining: the tokens of earlier chunks that are not
// kept; it is advanced.  Called by the whole block; ends with a barrier, so that all threads see the list.
__device__ __forceinline__ int collect(RowScan& scan, const MergeParams& p, const MergeImage& z, int64_t row,
                                       int64_t chunk, int64_t& remaining) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t token = chunk + threadIdx.x;
  const int64_t own = token < z.S ? row_of(p, z, token) : -1;
  const bool member = own == row, remains = own >= z.k && own < z.k + z.m;
  const unsigned members = __ballot_sync(kAllLanes, member), rest = __ballot_sync(kAllLanes, remains);
  if (lane == 0) {
    scan.members_of_warp[warp] = __popc(members);
    scan.remaining_of_warp[warp] = __popc(rest);
  }
  __syncthreads();  // the counts of all warps; and the last chunk's list has been read
  const unsigned below = (1u << lane) - 1;
  int place = __popc(members & below), count = 0;
  int64_t rank = remaining + __popc(rest & below);
  for (int w = 0; w < kMergeWarps; w++) {
    if (w < warp) {
      place += scan.members_of_warp[w];
      rank += scan.remaining_of_warp[w];
    }
    count += scan.members_of_warp[w];
    remaining += scan.remaining_of_warp[w];
  }
  if (member) {
    scan.tokens[place] = threadIdx.x;
    scan.targets[place] = row >= z.k && rank == (row - z.k) * z.step;
  }
  __syncthreads();  // the list; and the counts may be overwritten
  return count;
}

// A thread's channels of an output row: its representative (the kept token or the target), and the sum of what is
// averaged, by segments.
template <int kCount>
struct RowSum {
  template <class T>
  __device__ __forceinline__ void add(const Pack<T, kCount>& pack, bool is_averaged) {
    averaged += is_averaged;
#pragma unroll
    for (int e = 0; e < kCount; e++) {
      const float value = widen(pack.element[e]);
      representative[e] = is_averaged ? representative[e] : value;
      segment[e] = is_averaged ? segment[e] + value : segment[e];
    }
    if (!is_averaged || averaged % kSegment) return;
#pragma unroll
    for (int e = 0; e < kCount; e++) {
      sum[e] += segment[e];
      segment[e] = 0;
    }
  }

  template <class T>
  __device__ __forceinline__ Pack<T, kCount> row(MergeMode mode) const {
    const float n = static_cast<float>(averaged);
    Pack<T, kCount> pack;
#pragma unroll
    for (int e = 0; e < kCount; e++) {
      const float all = averaged % kSegment ? sum[e] + segment[e] : sum[e];
      float value = representative[e];
      if (averaged > 0) value = mode == MergeMode::kMean ? (value + all) / (n + 1.f) : value + all / n;
      narrow(value, pack.element[e]);
    }
    return pack;
  }

  float representative[kCount] = {}, segment[kCount] = {}, sum[kCount] = {};
  int averaged = 0;
};

// Output row `row` of an image, channels kCount at a time.  A block with fewer threads than packs takes several
// rounds.
template <class T, int kCount>
__device__ void merge_row(const MergeParams& p, RowScan& scan, const MergeImage& z, int64_t row) {
  using P = Pack<T, kCount>;
  const T* x = static_cast<const T*>(p.in) + z.in;
  T* out = static_cast<T*>(p.out) + (z.of_rows + row) * p.C;
  for (int64_t first = 0; first < p.C; first += int64_t{kMergeThreads} * kCount) {
    const int64_t c = first + int64_t{threadIdx.x} * kCount;
    const T* channels = x + min(c, p.C - kCount);  // a thread that has none reads others': no load waits for a branch
    RowSum<kCount> sum;
    int64_t remaining = 0;
    for (int64_t chunk = 0; chunk < z.S; chunk += kMergeThreads) {
      const int count = collect(scan, p, z, row, chunk, remaining);
      for (int member = 0; member < count; member += kRowLoads) {
        P packs[kRowLoads];
#pragma unroll
        for (int i = 0; i < kRowLoads; i++) {  // the last again where there are fewer, likewise
          const int token = scan.tokens[min(member + i, count - 1)];
          packs[i] = *reinterpret_cast<const P*>(channels + (chunk + token) * p.row_stride);
        }
#pragma unroll
        for (int i = 0; i < kRowLoads; i++) {
          if (member + i < count) sum.add(packs[i], row >= z.k && !scan.targets[member + i]);
        }
      }
    }
    if (c < p.C) store_pack(out + c, sum.template row<T>(p.mode));
  }
}

// How many tokens of the row are averaged into it.
__device__ __forceinline__ int64_t count_averaged(const MergeParams& p, RowScan& scan, const MergeImage& z,
                                                  int64_t row) {
  int64_t remaining = 0, averaged = 0;
  for (int64_t chunk = 0; chunk < z.S; chunk += kMergeThreads) {
    const int count = collect(scan, p, z, row, chunk, remaining);
    for (int i = 0; i < count; i++) averaged += row >= z.k && !scan.targets[i];
  }
  return averaged;
}

// The gradients of the tokens of `row` of an image.  Row k + m is that of all tokens that belong to none: zeros.
template <class T, int kCount>
__device__ void spread_row(const MergeParams& p, RowScan& scan, const MergeImage& z, int64_t row) {
  using P = Pack<T, kCount>;
  T* out = static_cast<T*>(p.out) + z.of_tokens * p.C;
  const bool is_row = row < z.k + z.m;
  const T* grad = static_cast<const T*>(p.in) + z.in + row * p.row_stride;
  const float n = is_row ? static_cast<float>(count_averaged(p, scan, z, row)) : 0.f;
  const bool mean = p.mode == MergeMode::kMean;
  const float weight_of_target = mean ? 1.f / (n + 1.f) : 1.f;
  const float weight_of_averaged = 1.f / (mean ? n + 1.f : n);
  int64_t remaining = 0;
  for (int64_t chunk = 0; chunk < z.S; chunk += kMergeThreads) {
    const int count = collect(scan, p, z, row, chunk, remaining);
    for (int i = 0; i < count; i++) {
      const float weight = row < z.k ? 1.f : scan.targets[i] ? weight_of_target : weight_of_averaged;
      T* to = out + (chunk + scan.tokens[i]) * p.C;
      for (int64_t c = int64_t{threadIdx.x} * kCount; c < p.C; c += int64_t{kMergeThreads} * kCount) {
        P pack{};
        if (is_row) {
          pack = *reinterpret_cast<const P*>(grad + c);
#pragma unroll
          for (int e = 0; e < kCount; e++) narrow(widen(pack.element[e]) * weight, pack.element[e]);
        }
        store_pack(to + c, pack);
      }
    }
  }
}

template <class T, int kCount>
__global__ void __launch_bounds__(kMergeThreads, kMergeBlocks) merge_kernel(const __grid_constant__ MergeParams p) {
  __shared__ RowScan scan;
  for (int64_t i = blockIdx.x; i < p.all_rows; i += gridDim.x) {
    take_row(p, scan, i, false);
    merge_row<T, kCount>(p, scan, scan.image, scan.row);
  }
}

template <class T, int kCount>
__global__ void __launch_bounds__(kMergeThreads, kMergeBlocks)
    merge_backward_kernel(const __grid_constant__ MergeParams p) {
  __shared__ RowScan scan;
  for (int64_t i = blockIdx.x; i < p.all_rows + p.B; i += gridDim.x) {
    take_row(p, scan, i, true);
    spread_row<T, kCount>(p, scan, scan.image, scan.row);
  }
}

}  // namespace visionzip::cuda
