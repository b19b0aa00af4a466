// Metrics: vectors of channels, each of which eight lanes work on, four channels at a time.
#pragma once

#include "cuda/kernels/zip_image.cuh"

namespace visionzip::cuda {

// sum + the products of four channels.
__device__ __forceinline__ float add_products(float4 a, float4 b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

__device__ __forceinline__ float4 divide(float4 x, float by) {
  return make_float4(x.x / by, x.y / by, x.z / by, x.w / by);
}

// The product of two vectors of Dp channels, for all of their lanes.
__device__ __forceinline__ float multiply(const float* a, const float* b, int Dp, int sub) {
  float sum = 0;
#pragma unroll 1  // the fused kernel has no registers for more loads
  for (int d = sub * 4; d < Dp; d += 4 * kTokenLanes) {
    sum = add_products(*reinterpret_cast<const float4*>(a + d), *reinterpret_cast<const float4*>(b + d), sum);
  }
  return reduce<Sum, kTokenLanes>(sum);
}

}  // namespace visionzip::cuda
