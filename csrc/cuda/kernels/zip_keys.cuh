// Phase 1: from one read of the block's keys, the metric (sum over heads and cells) and the CLS row's logits.
#pragma once

#include "cuda/kernels/zip_image.cuh"

namespace visionzip::cuda {

// 2 to the power of -exponent(largest): rows are scaled by it, so that their squares neither overflow nor vanish.
__device__ __forceinline__ float inverse_power_of_two(float largest) {
  const int exponent = static_cast<int>(__float_as_uint(largest) >> 23 & 255);
  return exponent == 255 ? 1.f : __uint_as_float(static_cast<unsigned>(max(254 - exponent, 1)) << 23);
}

// Starts the keys of the warp's first four tokens on their way, all heads': memory is waited for once, and neither the
// query, nor scores, nor eight heads' keys before eight others'.
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void prefetch_keys(const ZipImage<T, kFromQueries, Team>& z) {
  constexpr int kPer = kElements<T>;
  const ZipParams& p = z.p;
  const int local = z.warp * 4 + z.lane / kTokenLanes;
  if (local >= z.own_tokens) return;
  const T* keys = static_cast<const T*>(p.keys) + z.offset(p.key_image) +
                  static_cast<int64_t>(z.first_token + local) * p.group * p.key_token;
  for (int d = z.sub * kPer; d < p.D; d += kTokenLanes * kPer) {
#pragma unroll 8
    for (int h = 0; h < p.H; h++) ptx::prefetch(keys + h * p.key_head + d);
  }
}

// CLS's queries of all heads, as float, each head padded with zeros to a multiple of eight channels.
template <class T, class Team>
__device__ __forceinline__ void load_query(const ZipImage<T, true, Team>& z) {
  const ZipParams& p = z.p;
  const int padded = round_up(p.D, 8);
  const T* query = static_cast<const T*>(p.queries) + z.offset(p.query_image);
  float* to = z.template at<float>(p.at.query);
  for (int x = z.tid; x < p.H * padded; x += z.threads) {
    const int h = x / padded, d = x - h * padded;
    to[x] = d < p.D ? widen(query[h * p.query_head + d]) : 0.f;
  }
}

// One vector of channels of one token and eight heads; zero where there is none.
template <bool kWide, class T, bool kFromQueries, class Team>
__device__ __forceinline__ void load_heads(const ZipImage<T, kFromQueries, Team>& z, const T* keys, int first_head,
                                           int d, int n, uint4 (&raw)[8]) {
#pragma unroll
  for (int i = 0; i < 8; i++) {
    raw[i] = n > 0 && first_head + i < z.p.H ? load_vector<kWide>(keys + (first_head + i) * z.p.key_head + d, n)
                                             : make_uint4(0, 0, 0, 0);
  }
}

// One vector of channels of one token, over eight heads: adds them to the metric, and their products with CLS's query
// to `dot`.  Returns the metric's largest magnitude.  starts: the metric is not yet there; n: channels that exist (0:
// none, for lanes beyond the end).  Explicit fmaf, because the compiler may contract a sum differently in each
// instantiation.
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ float add_heads(const ZipImage<T, kFromQueries, Team>& z, const T* keys, float* metric,
                                           bool starts, int first_head, int d, int n, float (&dot)[8]) {
  constexpr int kPer = kElements<T>;
  const ZipParams& p = z.p;
  const int padded = round_up(p.D, 8);
  uint4 raw[8];
  if (p.wide_keys) {
    load_heads<true>(z, keys, first_head, d, n, raw);
  } else {
    load_heads<false>(z, keys, first_head, d, n, raw);
  }
  if (n <= 0) return 0;
  float sum[kPer];
#pragma unroll
  for (int e = 0; e < kPer; e += 4) {
    const float4 x =
        !starts && d + e < p.Dp ? *reinterpret_cast<const float4*>(metric + d + e) : make_float4(0.f, 0.f, 0.f, 0.f);
    sum[e] = x.x;
    sum[e + 1] = x.y;
    sum[e + 2] = x.z;
    sum[e + 3] = x.w;
  }
#pragma unroll
  for (int i = 0; i < 8; i++) {
    if (first_head + i >= p.H) continue;
    float key[kPer];
    unpack<T>(raw[i], key);
#pragma unroll
    for (int e = 0; e < kPer; e++) sum[e] += key[e];
    if (!kFromQueries) continue;
    const float* query = z.template at<float>(p.at.query) + (first_head + i) * padded + d;
#pragma unroll
    for (int e = 0; e < kPer; e += 4) {
      const float4 q = *reinterpret_cast<const float4*>(query + e);
      dot[i] = fmaf(key[e + 3], q.w, fmaf(key[e + 2], q.z, fmaf(key[e + 1], q.y, fmaf(key[e], q.x, dot[i]))));
    }
  }
  float largest = 0;
#pragma unroll
  for (int e = 0; e < kPer; e++) largest = fmaxf(largest, fabsf(sum[e]));
#pragma unroll
  for (int e = 0; e < kPer; e += 4) {
    if (d + e < p.Dp) {
      *reinterpret_cast<float4*>(metric + d + e) = make_float4(sum[e], sum[e + 1], sum[e + 2], sum[e + 3]);
    }
  }
  return largest;
}

template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void scale_and_publish(const ZipImage<T, kFromQueries, Team>& z, int local, bool exists,
                                                  float* metric, float largest) {
  constexpr int kPer = kElements<T>;
  const float scale = inverse_power_of_two(reduce<Max, kTokenLanes>(largest));
  const int vectors = ceil_divide(z.p.D, kPer);
  for (int v = z.sub; v < vectors; v += kTokenLanes) {
#pragma unroll
    for (int e = 0; e < kPer; e += 4) {
      const int d = v * kPer + e;
      if (!exists || d >= z.p.Dp) continue;
      float4 x = *reinterpret_cast<const float4*>(metric + d);
      x = make_float4(x.x * scale, x.y * scale, x.z * scale, x.w * scale);
      *reinterpret_cast<float4*>(metric + d) = x;
      z.team.publish4(z.first_token + local, d, x);
    }
  }
}

// Eight lanes a token, four tokens a warp.  All lanes of a warp run every iteration: the reductions need them.
template <class T, bool kFromQueries, class Team>
__device__ __forceinline__ void read_keys(const ZipImage<T, kFromQueries, Team>& z) {
  constexpr int kPer = kElements<T>;
  const ZipParams& p = z.p;
  const int vectors = ceil_divide(p.D, kPer);
  const T* keys = static_cast<const T*>(p.keys) + z.offset(p.key_image);
  for (int base = z.warp * 4; base < z.own_tokens; base += z.warps * 4) {
    const int local = base + z.lane / kTokenLanes;
    const bool exists = local < z.own_tokens;
    const T* token_keys = keys + static_cast<int64_t>(z.first_token + local) * p.group * p.key_token;
    float* metric = z.template at<float>(p.at.metric) + static_cast<size_t>(local) * p.Dp;
    float largest = 0;
    // One loop over all cells' heads: within another, it would have fewer loads under way.
    for (int cell = 0, head = 0; cell < p.group;) {
      const bool starts = cell == 0 && head == 0, ends = cell + 1 == p.group && head + 8 >= p.H;
      float dot[8] = {};
      for (int v = 0; v < vectors; v += kTokenLanes) {
        const int d = (v + z.sub) * kPer, n = exists ? min(kPer, p.D - d) : 0;
        const float magnitude = add_heads(z, token_keys, metric, starts, head, d, n, dot);
        if (ends) largest = fmaxf(largest, magnitude);
      }
      if (kFromQueries) {  // without groups: CLS has none
        const float logit = eight_sums(dot, z.sub);
        if (exists && head + z.sub < p.H) {
          z.template at<float>(p.at.logits)[local * heads_pitch(p.H) + head + z.sub] = __fmul_rn(logit, p.scale);
        }
      }
      head += 8;
      if (head < p.H) continue;
      head = 0;
      cell++;
      token_keys += p.key_token;
    }
    scale_and_publish(z, local, exists, metric, largest);
  }
}

}  // namespace visionzip::cuda
