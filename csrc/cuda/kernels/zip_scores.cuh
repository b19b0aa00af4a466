// Phase 2: the block's tokens' scores, as integers in the order of floats, from given attention or from logits.
#pragma once

#include "cuda/kernels/zip_image.cuh"

namespace visionzip::cuda {

constexpr int kScoreLoads = 16;  // of a thread, under way at a time: they are far apart, and few threads have any

// `values` as what they are.
template <class F>
__device__ __forceinline__ auto with_elements(const void* values, DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(static_cast<const float*>(values));
    case DType::kFloat16:
      return f(static_cast<const __half*>(values));
    default:
      return f(static_cast<const __nv_bfloat16*>(values));
  }
}

// The sum, in order, of `count` values that are `stride` apart.  Where fewer are left than are loaded, the last is
// loaded again: no load waits for a branch.
template <class U>
__device__ __forceinline__ float add_up(const U* values, int64_t stride, int count) {
  float sum = 0;
#pragma unroll 1
  for (int first = 0; first < count; first += kScoreLoads) {
    U loaded[kScoreLoads];
#pragma unroll
    for (int i = 0; i < kScoreLoads; i++) loaded[i] = values[min(first + i, count - 1) * stride];
#pragma unroll
    for (int i = 0; i < kScoreLoads; i++) {
      if (first + i < count) sum += widen(loaded[i]);
    }
  }
  return sum;
}

template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void store_score(const ZipImage<T, kFromQueries, Team>& z, int local, float score) {
  const int token = z.first_token + local;
  z.template at<unsigned>(z.p.at.scores)[token] = z.p.has_cls && token == 0 ? kHighest : ordered(score);
}

// One row a head, whose heads are added up; or finished scores, of which a token's cells are.  From the last warps,
// which have the fewest keys to read.
template <class T, class Team>
__device__ __forceinline__ void score_rows(const ZipImage<T, false, Team>& z) {
  const ZipParams& p = z.p;
  const bool finished = p.attn_heads == 1;
  const int count = finished ? p.group : p.attn_heads;
  const int64_t stride = finished ? 1 : p.attn_head;
  with_elements(p.attn, p.attn_dtype, [&](const auto* attn) {
    attn += z.offset(p.attn_image) + int64_t{z.first_token} * p.group;
    for (int x = z.threads - 1 - z.tid; x < z.own_tokens; x += z.threads) {
      store_score(z, x, add_up(attn + int64_t{x} * p.group, stride, count));
    }
  });
}

// A column of one head, in blocks of 64 rows, because a plain sum of thousands of small probabilities loses the digits
// that tell two tokens apart.
template <class U>
__device__ __forceinline__ float sum_column(const U* column, int64_t row_stride, int rows) {
  constexpr int kRows = 64;
  float sum = 0;
  for (int row = 0; row < rows; row += kRows) {
    sum += add_up(column + row * row_stride, row_stride, min(kRows, rows - row));
  }
  return sum;
}

// The columns of an attention matrix, or of its sums by chunks of queries: a thread adds a token's of one head.
template <class T, class Team>
__device__ __forceinline__ void sum_matrix(const ZipImage<T, false, Team>& z) {
  const ZipParams& p = z.p;
  const int64_t cells = int64_t{z.S} * p.group;
  // Column sums of packed images: (attn_heads, attn_rows, cells) of one after another.
  const int64_t row_stride = p.sequences ? cells : p.attn_row;
  const int64_t head_stride = p.sequences ? cells * p.attn_rows : p.attn_head;
  float* head_sums = z.template at<float>(p.at.logits);
  with_elements(p.attn, p.attn_dtype, [&](const auto* attn) {
    attn += z.offset(p.attn_image) + int64_t{z.first_token} * p.group;
    for (int x = z.tid; x < z.own_tokens * p.attn_heads; x += z.threads) {
      const int h = x / z.own_tokens, local = x - h * z.own_tokens;
      const auto* columns = attn + h * head_stride + int64_t{local} * p.group;
      float sum = 0;
      for (int cell = 0; cell < p.group; cell++) sum += sum_column(columns + cell, row_stride, p.attn_rows);
      head_sums[x] = sum;
    }
  });
}

// A token's mean over heads and queries, once the block has summed its columns.
template <class T, class Team>
__device__ __forceinline__ void score_matrix(const ZipImage<T, false, Team>& z) {
  const ZipParams& p = z.p;
  const float* head_sums = z.template at<float>(p.at.logits);
  const auto entries = static_cast<float>(p.attn_heads) * static_cast<float>(int64_t{z.S} * p.group);
  for (int x = z.tid; x < z.own_tokens; x += z.threads) {
    float sum = 0;
    for (int h = 0; h < p.attn_heads; h++) sum += head_sums[h * z.own_tokens + x];
    store_score(z, x, sum / entries);
  }
}

// The maximum of a chunk's logits, n of them that are `pitch` apart, and the sum of their exponentials.
__device__ __forceinline__ float2 chunk_stat(const float* logits, int pitch, int n) {
  float most = -INFINITY, sum = 0;
  for (int i = 0; i < n; i++) most = fmaxf(most, logits[i * pitch]);
  const float shift = most == -INFINITY ? 0.f : most;  // a chunk of -inf counts nothing; NaN stays NaN
  for (int i = 0; i < n; i++) sum += expf(logits[i * pitch] - shift);
  return make_float2(most, sum);
}

// A head's maximum and the inverse of its sum, by a warp; stat(c): those of chunk c.
template <class Stat>
__device__ __forceinline__ float2 head_stat(int chunks, int lane, const Stat& stat) {
  float most = -INFINITY, sum = 0;
  for (int c = lane; c < chunks; c += 32) most = fmaxf(most, stat(c).x);
  most = reduce<Max>(most);
  for (int c = lane; c < chunks; c += 32) {
    const float2 part = stat(c);
    sum = fmaf(part.y, expf(part.x - most), sum);
  }
  return make_float2(most, 1.f / reduce<Sum>(sum));
}

__device__ __forceinline__ float probability(float logit, float2 head_stat) {
  return __fmul_rn(expf(logit - head_stat.x), head_stat.y);
}

// A chunk's maximum and sum for each head, sent to the team.
template <class T, class Team>
__device__ __forceinline__ void share_softmax_stats(const ZipImage<T, true, Team>& z) {
  const ZipParams& p = z.p;
  const int chunk = chunk_tokens(z.S), pitch = heads_pitch(p.H);
  float2* stats = z.template at<float2>(p.at.softmax_stats);
  for (int x = z.tid; x < z.own_chunks * pitch; x += z.threads) {
    const int c = x / pitch, h = x - c * pitch, n = h < p.H ? min(chunk, z.own_tokens - c * chunk) : 0;
    const float* logits = z.template at<float>(p.at.logits) + static_cast<size_t>(c) * chunk * pitch + h;
    stats[(z.first_chunk + c) * pitch + h] = chunk_stat(logits, pitch, n);
  }
  __syncthreads();
  z.team.spread(stats, z.first_chunk * pitch, z.own_chunks * pitch);
  z.team.arrive();
  z.team.wait();
  z.team.fetch(stats, z.chunks * pitch);
}

// Each head's maximum and the inverse of its sum, by each block for itself: a warp takes a head, its lanes the chunks.
template <class T, class Team>
__device__ __forceinline__ void combine_softmax_stats(const ZipImage<T, true, Team>& z) {
  const ZipParams& p = z.p;
  const float2* stats = z.template at<float2>(p.at.softmax_stats);
  float2* head_stats = z.template at<float2>(p.at.head_stats);
  const int pitch = heads_pitch(p.H);
  for (int h = z.warp; h < p.H; h += z.warps) {
    const float2 stat = head_stat(z.chunks, z.lane, [&](int c) { return stats[c * pitch + h]; });
    if (z.lane == 0) head_stats[h] = stat;
  }
}

template <class T, class Team>
__device__ __forceinline__ void score_logits(const ZipImage<T, true, Team>& z) {
  const ZipParams& p = z.p;
  float2* head_stats = z.template at<float2>(p.at.head_stats);
  if (p.lse) {
    for (int h = z.tid; h < p.H; h += z.threads) {
      head_stats[h] = make_float2(p.lse[z.offset(p.lse_image) + h * p.lse_head], 1.f);
    }
  } else {
    share_softmax_stats(z);
    combine_softmax_stats(z);
  }
  __syncthreads();
  float* logits = z.template at<float>(p.at.logits);
  const int pitch = heads_pitch(p.H);
  for (int x = z.tid; x < z.own_tokens * p.H; x += z.threads) {
    const int local = x / p.H, h = x - local * p.H;
    float& logit = logits[local * pitch + h];
    logit = probability(logit, head_stats[h]);
  }
  __syncthreads();
  for (int x = z.tid; x < z.own_tokens; x += z.threads) {
    float sum = 0;
    for (int h = 0; h < p.H; h++) sum += logits[x * pitch + h];
    store_score(z, x, sum);
  }
}

template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void send_scores(const ZipImage<T, kFromQueries, Team>& z) {
  __syncthreads();
  z.team.spread(z.template at<unsigned>(z.p.at.scores), z.first_token, z.own_tokens);
  z.team.arrive();
}

// Every block of the team then holds every token's score.
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void receive_scores(const ZipImage<T, kFromQueries, Team>& z) {
  z.team.wait();
  z.team.fetch(z.template at<unsigned>(z.p.at.scores), z.S);
}

}  // namespace visionzip::cuda
