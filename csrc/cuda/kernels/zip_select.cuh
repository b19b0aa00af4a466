// Phase 3: the k highest scores, exactly; equal scores by index.  Each block ends up with all bits.
#pragma once

#include "cuda/kernels/zip_image.cuh"

namespace visionzip::cuda {

// Each block for its own tokens, a warp for eight of them: kept where fewer than k tokens are better.  S * own_tokens
// comparisons and a team barrier: for short images.
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void select_by_rank(const ZipImage<T, kFromQueries, Team>& z) {
  const ZipParams& p = z.p;
  const unsigned* scores = z.template at<unsigned>(p.at.scores);
  unsigned char* bytes = z.template at<unsigned char>(p.at.kept_bitmap);
  const int own_bytes = ceil_divide(z.own_tokens, 8), first_byte = z.first_token / 8;
  for (int c = z.warp; c < own_bytes; c += z.warps) {
    const int first = z.first_token + c * 8;
    unsigned mine[8], better[4] = {};  // two counts of 16 bits in each
#pragma unroll
    for (int q = 0; q < 8; q++) mine[q] = first + q < z.S ? scores[first + q] : kHighest;
    for (int j = z.lane; j < z.S; j += 32) {
      const unsigned score = scores[j];
#pragma unroll
      for (int q = 0; q < 8; q++) {
        const bool beats = score > mine[q] || (score == mine[q] && j < first + q);
        better[q / 2] += static_cast<unsigned>(beats) << (16 * (q % 2));
      }
    }
    unsigned byte = 0;
#pragma unroll
    for (int q = 0; q < 4; q++) {
      const auto counts = static_cast<unsigned>(reduce<Sum>(static_cast<int>(better[q])));
      byte |= static_cast<unsigned>((counts & 0xffff) < static_cast<unsigned>(z.k)) << (2 * q);
      byte |= static_cast<unsigned>((counts >> 16) < static_cast<unsigned>(z.k)) << (2 * q + 1);
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

// The k-th highest score, four bits a round: each warp counts the tokens that reach a candidate.
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ unsigned least_kept_score(const ZipImage<T, kFromQueries, Team>& z) {
  const ZipParams& p = z.p;
  const unsigned* scores = z.template at<unsigned>(p.at.scores);
  int* counts = z.template at<int>(p.at.digit_counts);
  unsigned least = 0;
  for (int shift = 28, half = 0; shift >= 0; shift -= 4, half ^= 16) {  // two halves: one barrier a round
    for (int digit = 1 + z.warp; digit < 16; digit += z.warps) {
      const unsigned candidate = least | static_cast<unsigned>(digit) << shift;
      int reached = 0;
      for (int j = z.lane; j < z.S; j += 32) reached += scores[j] >= candidate;
      reached = reduce<Sum>(reached);
      if (z.lane == 0) counts[half + digit] = reached;
    }
    __syncthreads();
    unsigned digit = 0;
#pragma unroll
    for (int d = 1; d < 16; d++) digit += counts[half + d] >= z.k;
    least |= digit << shift;
  }
  return least;
}

// Each block for itself: no team barrier, and a cost that grows with S only.
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void select_by_digits(const ZipImage<T, kFromQueries, Team>& z) {
  const ZipParams& p = z.p;
  const unsigned* scores = z.template at<unsigned>(p.at.scores);
  unsigned* words = z.template at<unsigned>(p.at.kept_bitmap);
  const unsigned least = least_kept_score(z);
  if (z.warp != 0) return;
  int above = 0;
  for (int j = z.lane; j < z.S; j += 32) above += scores[j] > least;
  const int of_equal = z.k - reduce<Sum>(above);  // so many of those that equal it, by index
  int seen = 0;
  for (int w = 0; w < z.words; w++) {
    const int j = w * 32 + z.lane;
    const unsigned score = j < z.S ? scores[j] : 0;
    const bool equal = j < z.S && score == least;
    const unsigned equals = __ballot_sync(kAllLanes, equal);
    const int before = seen + __popc(equals & ((1u << z.lane) - 1));
    const bool kept = j < z.S && (score > least || (equal && before < of_equal));
    const unsigned bits = __ballot_sync(kAllLanes, kept);
    seen += __popc(equals);
    if (z.lane == 0) words[w] = bits;
  }
}

// Kept tokens before each word; the tokens of kept rows and of targets.
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void index_selection(const ZipImage<T, kFromQueries, Team>& z) {
  const ZipParams& p = z.p;
  unsigned* words = z.template at<unsigned>(p.at.kept_bitmap);
  if (z.warp == 0) {
    __syncwarp();
    unsigned kept_before = 0;
    for (int first = 0; first < z.words; first += 32) {
      const int w = first + z.lane;
      unsigned bits = w < z.words ? words[w] : 0, total;
      if (w == z.words - 1 && z.S % 32) {
        bits &= (1u << (z.S % 32)) - 1;
        words[w] = bits;
      }
      const unsigned before = exclusive_scan(static_cast<unsigned>(__popc(bits)), z.lane, total);
      if (w < z.words) z.template at<unsigned>(p.at.kept_before)[w] = kept_before + before;
      kept_before += total;
    }
  }
  __syncthreads();
  for (int i = z.tid; i < z.S; i += z.threads) {
    const int before = z.kept_before(i);
    if (z.is_kept(i)) {
      z.template at<uint16_t>(p.at.kept)[before] = static_cast<uint16_t>(i);
    } else if (const int t = z.target_of_rank(i - before); t >= 0) {
      z.template at<uint16_t>(p.at.targets)[t] = static_cast<uint16_t>(i);
    }
  }
  __syncthreads();
}

template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void select_tokens(const ZipImage<T, kFromQueries, Team>& z) {
  if (z.p.rank_counting) {
    select_by_rank(z);
  } else {
    select_by_digits(z);
  }
  index_selection(z);
}

}  // namespace visionzip::cuda
