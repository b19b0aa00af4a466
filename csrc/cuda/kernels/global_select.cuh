// The launch that selects: a block an image finds the least score that is selected, eight bits a round, and then lists
// the image's kept tokens, its targets and the rest, all ascending.  Equal scores by index.
#pragma once

#include "cuda/kernels/global_slice.cuh"
#include "cuda/kernels/zip_assign.cuh"

namespace visionzip::cuda {

constexpr int kSelectThreads = 1024;
constexpr int kSelectWarps = kSelectThreads / 32;
constexpr int kDigits = 256;

// Tokens whose score is above the k-th highest one, and that equal it.
struct Counts {
  int above, equal;
};

struct SelectShared {
  int of_digit[kDigits];
  Counts of_warp[kSelectWarps];
  unsigned least;  // the k-th highest score, as far as it is known
  int wanted;      // of the tokens that it does not tell apart yet, how many are kept
};

// How many of the tokens that agree with `least` above the digit have each value of it.
__device__ __forceinline__ void count_digits(const SlicedImage<>& z, const unsigned* scores, SelectShared& shared,
                                             int shift) {
  const unsigned known = ~((1u << shift) * (kDigits - 1) | ((1u << shift) - 1));
#pragma unroll 4
  for (int first = z.warp * 32; first < z.S; first += kSelectThreads) {
    const int token = first + z.lane;
    const unsigned score = scores[min(token, z.S - 1)];
    const bool counts = token < z.S && (score & known) == shared.least;
    const unsigned counting = __ballot_sync(kAllLanes, counts);
    if (!counts) continue;
    // Scores are alike in their first digit: one lane adds for all that have the same.
    const unsigned digit = score >> shift & (kDigits - 1), same = __match_any_sync(counting, digit);
    if ((same & ((1u << z.lane) - 1)) == 0) atomicAdd(&shared.of_digit[digit], __popc(same));
  }
}

// By one warp, a lane for eight digits, the highest first.
__device__ __forceinline__ void choose_digit(SelectShared& shared, int shift, int lane) {
  constexpr int kOfLane = kDigits / 32;
  const int highest = kDigits - 1 - lane * kOfLane;
  int own = 0, all;
  for (int i = 0; i < kOfLane; i++) own += shared.of_digit[highest - i];
  int before = exclusive_scan(own, lane, all);
  const int wanted = shared.wanted;
  __syncwarp();
  if (before >= wanted || before + own < wanted) return;
  int digit = highest;
  while (before + shared.of_digit[digit] < wanted) before += shared.of_digit[digit--];
  shared.least |= static_cast<unsigned>(digit) << shift;
  shared.wanted = wanted - before;
}

// Leaves in `least` the k-th highest score, and in `wanted` how many of those that equal it are kept.
__device__ __forceinline__ void find_least_kept(const SlicedImage<>& z, const unsigned* scores, SelectShared& shared) {
  if (z.tid == 0) {
    shared.least = z.selected() > 0 ? 0 : kHighest;
    shared.wanted = z.selected();
  }
  for (int shift = 24; shift >= 0 && z.selected() > 0; shift -= 8) {
    __syncthreads();
    if (z.tid < kDigits) shared.of_digit[z.tid] = 0;
    __syncthreads();
    count_digits(z, scores, shared, shift);
    __syncthreads();
    if (z.warp == 0) choose_digit(shared, shift, z.lane);
  }
  __syncthreads();
}

// A warp's share of an image: whole words of 32 tokens.
struct WarpShare {
  int begin, end;

  __device__ __forceinline__ explicit WarpShare(const SlicedImage<>& z) {
    const int tokens = ceil_divide(z.words, kSelectWarps) * 32;
    begin = min(z.S, z.warp * tokens);
    end = min(z.S, begin + tokens);
  }
};

// Those before the warp's share.
__device__ __forceinline__ Counts count_before(const SlicedImage<>& z, const unsigned* scores, const WarpShare& own,
                                               SelectShared& shared) {
  Counts counts{};
#pragma unroll 4
  for (int token = own.begin + z.lane; token < own.end; token += 32) {
    const unsigned score = scores[token];
    counts.above += score > shared.least;
    counts.equal += score == shared.least;
  }
  counts = {reduce<Sum>(counts.above), reduce<Sum>(counts.equal)};
  if (z.lane == 0) shared.of_warp[z.warp] = counts;
  __syncthreads();
  Counts before{};
  for (int w = 0; w < z.warp; w++) {
    before.above += shared.of_warp[w].above;
    before.equal += shared.of_warp[w].equal;
  }
  return before;
}

// One token's part of the decision; of a token that is to be merged, its place among those.
__device__ __forceinline__ void write_token(const GlobalParams& p, const SlicedImage<>& z, int token, bool selected,
                                            int selected_before) {
  int64_t row = -1;
  if (selected) {
    row = z.row_of_selected(selected_before);
    if (row >= 0) p.indices[z.image_kept + row] = z.first_number + token;
  } else if (z.m > 0) {
    const int rank = token - selected_before, target = z.target_of_rank(rank);
    if (target < 0) {
      const int targets = static_cast<int>(min(int64_t{z.m}, ceil_divide(int64_t{rank}, z.step)));
      scratch_at<int>(p, p.lies.rest)[z.image_token + rank - targets] = token;
      return;
    }
    row = z.k + target;
    scratch_at<int>(p, p.lies.targets)[z.image_row - z.image_kept + target] = token;
  }
  p.assignment[z.image_token + token] = row < 0 ? row : z.first_row_number + row;
}

__device__ __forceinline__ void write_share(const GlobalParams& p, const SlicedImage<>& z, const unsigned* scores,
                                            const WarpShare& own, Counts before, const SelectShared& shared) {
  const unsigned below = (1u << z.lane) - 1;
  const int wanted = shared.wanted;
  for (int first = own.begin; first < own.end; first += 32) {
    const int token = first + z.lane;
    const unsigned score = scores[min(token, z.S - 1)];
    const bool exists = token < own.end, above = exists && score > shared.least;
    const bool equal = exists && score == shared.least;
    const unsigned aboves = __ballot_sync(kAllLanes, above), equals = __ballot_sync(kAllLanes, equal);
    const int equal_before = before.equal + __popc(equals & below);
    const int selected_before = before.above + __popc(aboves & below) + min(equal_before, wanted);
    if (exists) write_token(p, z, token, above || (equal && equal_before < wanted), selected_before);
    before.above += __popc(aboves);
    before.equal += __popc(equals);
  }
}

__global__ void __launch_bounds__(kSelectThreads, 1) global_select_kernel(const __grid_constant__ GlobalParams p) {
  __shared__ SelectShared shared;
  SliceTeam team;
  for (int64_t image = blockIdx.x; image < p.images; image += gridDim.x) {
    const SlicedImage<> z(p, nullptr, team, image);
    const unsigned* scores = scratch_at<const unsigned>(p, p.lies.scores) + z.image_token;
    if (z.k + z.m == 0) {
      drop_image(z);
      continue;
    }
    find_least_kept(z, scores, shared);
    const WarpShare own(z);
    const Counts before = count_before(z, scores, own, shared);
    write_share(p, z, scores, own, before, shared);
    __syncthreads();  // before the next image's threshold is sought
  }
}

}  // namespace visionzip::cuda
