// Phase 3: the highest scores, exactly; equal scores by index.  Each block ends up with all bits.  With the policy
// "distinct", those are the tokens that were taken before, one after another.
#pragma once

#include "cuda/kernels/zip_distinct.cuh"

namespace visionzip::cuda {

// For each of eight tokens, how many others are better: 16 bits each, which S fits.
using Counts = unsigned[4];

__device__ __forceinline__ void count_one(Counts& counts, int q, bool beats) {
  counts[q / 2] += beats ? 1u << (16 * (q % 2)) : 0;
}

// Each block for its own tokens, a warp for eight of them: selected where fewer tokens are better than are to be
// selected.  S * own_tokens comparisons and a team barrier: for short images.  Tokens before the eight are better where
// they score as much, those behind where they score more; so only the eight among themselves need both comparisons.
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void select_by_rank(const ZipImage<T, kFromQueries, Team>& z) {
  const ZipParams& p = z.p;
  const unsigned* scores = z.template at<unsigned>(p.at.scores);
  unsigned char* bytes = z.template at<unsigned char>(p.at.selected_bitmap);
  const int own_bytes = ceil_divide(z.own_tokens, 8), first_byte = z.first_token / 8;
  const auto wanted = static_cast<unsigned>(z.selected());
  for (int c = z.warp; c < own_bytes; c += z.warps) {
    const int first = z.first_token + c * 8, own = first + z.lane;
    unsigned mine[8];
    Counts better = {};
#pragma unroll
    for (int q = 0; q < 8; q++) mine[q] = first + q < z.S ? scores[first + q] : kHighest;
    for (int j = z.lane; j < first; j += 32) {
      const unsigned score = scores[j];
#pragma unroll
      for (int q = 0; q < 8; q++) count_one(better, q, score >= mine[q]);
    }
    for (int j = own + 8; j < z.S; j += 32) {
      const unsigned score = scores[j];
#pragma unroll
      for (int q = 0; q < 8; q++) count_one(better, q, score > mine[q]);
    }
    if (z.lane < 8 && own < z.S) {
      const unsigned score = scores[own];
#pragma unroll
      for (int q = 0; q < 8; q++) count_one(better, q, score > mine[q] || (score == mine[q] && z.lane < q));
    }
    unsigned byte = 0;
#pragma unroll
    for (int q = 0; q < 4; q++) {
      const unsigned counts = reduce_sum(better[q]);
      byte |= static_cast<unsigned>((counts & 0xffff) < wanted) << (2 * q);
      byte |= static_cast<unsigned>((counts >> 16) < wanted) << (2 * q + 1);
    }
    if (z.S - first < 8) byte &= (1u << (z.S - first)) - 1;
    if (z.lane == 0) bytes[first_byte + c] = static_cast<unsigned char>(byte);
  }
  __syncthreads();
  z.team.spread(bytes, first_byte, own_bytes);
  z.team.arrive();
  z.team.wait();
  z.team.fetch(bytes, ceil_divide(z.S, 8));
}

// What the digits of scores have found.
struct LeastKept {
  unsigned score;  // the k-th highest
  int kept;        // tokens that are kept of those with this score
  bool tied;       // there are more of them
};

// Of 32 scores, how many have this lane's number as their next digit, after digits that are those of `least`.
__device__ __forceinline__ int count_digit(unsigned score, bool exists, unsigned least, int shift, int lane) {
  unsigned same = __ballot_sync(kAllLanes, exists && (score ^ least) >> shift < 1u << kDigitBits);
  score >>= shift;
#pragma unroll
  for (int bit = 0; bit < kDigitBits; bit++) {
    const unsigned set = __ballot_sync(kAllLanes, score >> bit & 1);
    same &= lane >> bit & 1 ? set : ~set;
  }
  return __popc(same);
}

// Five bits a round, the highest two first: all warps count the scores with each digit, and each finds the digit of the
// k-th highest.
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ LeastKept least_kept_score(const ZipImage<T, kFromQueries, Team>& z) {
  const ZipParams& p = z.p;
  const unsigned* scores = z.template at<unsigned>(p.at.scores);
  int* counts = z.template at<int>(p.at.digit_counts);
  for (int x = z.tid; x < kDigitRounds * 32; x += z.threads) counts[x] = 0;
  __syncthreads();
  LeastKept least{0, z.selected(), false};
  for (int shift = (kDigitRounds - 1) * kDigitBits; shift >= 0; shift -= kDigitBits, counts += 32) {
    int own = 0;
    for (int w = z.warp; w < z.words; w += z.warps) {
      const int j = w * 32 + z.lane;
      own += count_digit(j < z.S ? scores[j] : 0, j < z.S, least.score, shift, z.lane);
    }
    if (own > 0) atomicAdd(&counts[z.lane], own);
    __syncthreads();
    // Lanes from the highest digit to the lowest: the first with which enough tokens are reached has the k-th's.
    int all;
    const int equal = counts[31 - z.lane], above = exclusive_scan(equal, z.lane, all);
    const int found = __popc(__ballot_sync(kAllLanes, above + equal < least.kept));
    least.score |= static_cast<unsigned>(31 - found) << shift;
    least.kept -= __shfl_sync(kAllLanes, above, found);
    least.tied = __shfl_sync(kAllLanes, equal, found) > least.kept;
  }
  return least;
}

// Each block for itself: no team barrier, and a cost that grows with S only.
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void select_by_digits(const ZipImage<T, kFromQueries, Team>& z) {
  const ZipParams& p = z.p;
  const unsigned* scores = z.template at<unsigned>(p.at.scores);
  unsigned* words = z.template at<unsigned>(p.at.selected_bitmap);
  const LeastKept least = least_kept_score(z);
  // Of equal scores the first are kept, which only one warp can count; where all are, each word stands for itself.
  const int warps = least.tied ? 1 : z.warps;
  int seen = 0;
  for (int w = z.warp; z.warp < warps && w < z.words; w += warps) {
    const int j = w * 32 + z.lane;
    const unsigned score = j < z.S ? scores[j] : 0;
    const bool equal = j < z.S && score == least.score;
    const unsigned equals = __ballot_sync(kAllLanes, equal);
    const int before = seen + __popc(equals & ((1u << z.lane) - 1));
    const bool kept = j < z.S && (score > least.score || (equal && (!least.tied || before < least.kept)));
    const unsigned bits = __ballot_sync(kAllLanes, kept);
    seen += __popc(equals);
    if (z.lane == 0) words[w] = bits;
  }
  __syncthreads();
}

// Selected tokens before each word; the tokens of kept rows and of targets.
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void index_selection(const ZipImage<T, kFromQueries, Team>& z) {
  const ZipParams& p = z.p;
  unsigned* words = z.template at<unsigned>(p.at.selected_bitmap);
  if (z.warp == 0) {
    unsigned selected_before = 0;
    for (int first = 0; first < z.words; first += 32) {
      const int w = first + z.lane;
      unsigned bits = w < z.words ? words[w] : 0, total;
      if (w == z.words - 1 && z.S % 32) {
        bits &= (1u << (z.S % 32)) - 1;
        words[w] = bits;
      }
      const unsigned before = exclusive_scan(static_cast<unsigned>(__popc(bits)), z.lane, total);
      if (w < z.words) z.template at<unsigned>(p.at.selected_before)[w] = selected_before + before;
      selected_before += total;
    }
  }
  __syncthreads();
  for (int i = z.tid; i < z.S; i += z.threads) {
    const int before = z.selected_before(i);
    if (z.is_selected(i)) {
      const int row = z.row_of_selected(before);
      if (row >= 0) z.template at<uint16_t>(p.at.kept)[row] = static_cast<uint16_t>(i);
    } else if (const int t = z.target_of_rank(i - before); t >= 0) {
      z.template at<uint16_t>(p.at.targets)[t] = static_cast<uint16_t>(i);
    }
  }
  __syncthreads();
}

template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void select_tokens(const ZipImage<T, kFromQueries, Team>& z) {
  if (z.p.policy == SelectionPolicy::kDistinct) take_distinct(z);
  if (z.p.rank_counting) {
    select_by_rank(z);
  } else {
    select_by_digits(z);
  }
  index_selection(z);
}

}  // namespace visionzip::cuda
