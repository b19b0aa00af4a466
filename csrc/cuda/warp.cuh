// Reductions within a warp, each of one fixed shape.
#pragma once

#include <cstdint>

namespace visionzip::cuda {

constexpr unsigned kWarp = 0xffffffffu;

__device__ __forceinline__ int warp_sum(int x) {
#pragma unroll
  for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(kWarp, x, o);
  return x;
}
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(kWarp, x, o);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int o = 16; o; o >>= 1) x = fmaxf(x, __shfl_xor_sync(kWarp, x, o));
  return x;
}
// Over groups of eight lanes.
__device__ __forceinline__ float eight_sum(float x) {
#pragma unroll
  for (int o = 4; o; o >>= 1) x += __shfl_xor_sync(kWarp, x, o);
  return x;
}
__device__ __forceinline__ float eight_max(float x) {
#pragma unroll
  for (int o = 4; o; o >>= 1) x = fmaxf(x, __shfl_xor_sync(kWarp, x, o));
  return x;
}

// Eight values a lane over groups of eight lanes: lane `sub` of a group receives the group's sum of value `sub`.  Seven
// shuffles instead of the 24 of eight separate sums.
__device__ __forceinline__ float eight_sums(float (&v)[8], int sub) {
#pragma unroll
  for (int o = 4; o; o >>= 1) {
    const bool upper = sub & o;
#pragma unroll
    for (int i = 0; i < o; i++) {
      const float send = upper ? v[i] : v[i + o], keep = upper ? v[i + o] : v[i];
      v[i] = keep + __shfl_xor_sync(kWarp, send, o);
    }
  }
  return v[0];
}

// The sum over lower lanes.
template <class T>
__device__ __forceinline__ T exclusive_scan(T x, int lane, T& total) {
  T sum = x;
#pragma unroll
  for (int o = 1; o < 32; o <<= 1) {
    const T lower = __shfl_up_sync(kWarp, sum, o);
    if (lane >= o) sum += lower;
  }
  total = __shfl_sync(kWarp, sum, 31);
  return sum - x;
}

// Unsigned order is the order of floats: NaN lowest, -0 equal to +0.
__device__ __forceinline__ unsigned ordered(float x) {
  if (x != x) return 0;
  const unsigned bits = __float_as_uint(x == 0.f ? 0.f : x);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

}  // namespace visionzip::cuda
