// The launches that make scores: of CLS's logits by a softmax, or of given attention.
#pragma once

#include "cuda/kernels/global_slice.cuh"
#include "cuda/kernels/zip_scores.cuh"

namespace visionzip::cuda {

constexpr int kStatThreads = 128;

// Each head's softmax, from its chunks' statistics: a warp takes a head of an image.
__global__ void __launch_bounds__(kStatThreads) global_softmax_kernel(const __grid_constant__ GlobalParams p) {
  SliceTeam team;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t warps = int64_t{gridDim.x} * (kStatThreads / 32);
  for (int64_t x = int64_t{blockIdx.x} * (kStatThreads / 32) + threadIdx.x / 32; x < p.images * p.H; x += warps) {
    const int64_t image = x / p.H;
    const int h = static_cast<int>(x - image * p.H);
    const SlicedImage<> z(p, nullptr, team, image);
    float2* to = scratch_at<float2>(p, p.lies.head_stats) + x;
    if (p.lse) {
      if (lane == 0) *to = make_float2(p.lse[z.offset(p.lse_image) + h * p.lse_head], 1.f);
      continue;
    }
    const int slice_chunks = kSliceTokens / chunk_tokens(z.S);
    const char* stats =
        scratch_at<char>(p, p.lies.records + first_slice_of(p, image) * p.lies.record_bytes) + p.at.softmax_stats;
    const float2 stat = head_stat(z.chunks, lane, [&](int c) {
      const int slice = c / slice_chunks;
      return reinterpret_cast<const float2*>(stats + slice * p.lies.record_bytes)[(c - slice * slice_chunks) * p.H + h];
    });
    if (lane == 0) *to = stat;
  }
}

// Attention, as what it is, from the first of a token's cells on.
template <class F>
__device__ __forceinline__ float with_attention(const SlicedImage<>& z, int token, F&& f) {
  const int64_t offset = z.offset(z.p.attn_image) + int64_t{token} * z.p.group;
  return with_elements(z.p.attn, z.p.attn_dtype, [&](const auto* attn) { return f(attn + offset); });
}

// Where rows of attention are averaged: a thread adds a token's columns of one head.
__global__ void __launch_bounds__(kSliceTokens) global_columns_kernel(const __grid_constant__ GlobalParams p) {
  SliceTeam team;
  for (int64_t block = blockIdx.x; block < p.slices * p.attn_heads; block += gridDim.x) {
    const int64_t slice = block / p.attn_heads;
    const int h = static_cast<int>(block - slice * p.attn_heads);
    const Slice<> z(p, team, slice);
    if (z.is_empty() || z.tid >= z.own_tokens) continue;
    const int token = z.first_token + z.tid;
    // Column sums of packed images: (attn_heads, attn_rows, cells) of one after another.
    const int64_t cells = int64_t{z.S} * p.group, row_stride = p.sequences ? cells : p.attn_row;
    const int64_t head_stride = p.sequences ? cells * p.attn_rows : p.attn_head;
    const float sum = with_attention(z, token, [&](const auto* columns) {
      float all = 0;
      for (int cell = 0; cell < p.group; cell++) {
        all += sum_column(columns + h * head_stride + cell, row_stride, p.attn_rows);
      }
      return all;
    });
    scratch_at<float>(p, p.lies.column_sums)[h * p.all_tokens + z.image_token + token] = sum;
  }
}

__device__ __forceinline__ float score_of_logits(const Slice<>& z, int local) {
  const ZipParams& p = z.p;
  const float* logits = z.at<float>(p.at.logits) + static_cast<size_t>(local) * heads_pitch(p.H);
  const float2* head_stats = scratch_at<const float2>(z.all, z.all.lies.head_stats) + z.number * p.H;
  float sum = 0;
  for (int h = 0; h < p.H; h++) sum += probability(logits[h], head_stats[h]);
  return sum;
}

__device__ __forceinline__ float score_of_columns(const Slice<>& z, int token) {
  const ZipParams& p = z.p;
  const float* columns = scratch_at<const float>(z.all, z.all.lies.column_sums) + z.image_token + token;
  float sum = 0;
  for (int h = 0; h < p.attn_heads; h++) sum += columns[h * p.all_tokens];
  return sum / (static_cast<float>(p.attn_heads) * static_cast<float>(int64_t{z.S} * p.group));
}

// One row a head, whose heads are added up; or finished scores, of which a token's cells are.
__device__ __forceinline__ float score_of_rows(const Slice<>& z, int token) {
  const ZipParams& p = z.p;
  const bool finished = p.attn_heads == 1;
  return with_attention(z, token, [&](const auto* values) {
    return add_up(values, finished ? 1 : p.attn_head, finished ? p.group : p.attn_heads);
  });
}

__global__ void __launch_bounds__(kSliceTokens) global_scores_kernel(const __grid_constant__ GlobalParams p) {
  SliceTeam team;
  for (int64_t slice = blockIdx.x; slice < p.slices; slice += gridDim.x) {
    const Slice<> z(p, team, slice);
    if (z.is_empty() || z.tid >= z.own_tokens) continue;
    const int token = z.first_token + z.tid;
    const float score = scores_in_kernel(p) ? score_of_logits(z, z.tid)
                        : p.attn_rows > 1   ? score_of_columns(z, token)
                                            : score_of_rows(z, token);
    scratch_at<unsigned>(p, p.lies.scores)[z.image_token + token] = p.has_cls && token == 0 ? kHighest : ordered(score);
  }
}

}  // namespace visionzip::cuda
