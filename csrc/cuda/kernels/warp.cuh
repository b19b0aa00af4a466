// Reductions within a warp, each of one fixed shape.
#pragma once

#include <cstdint>

namespace visionzip::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

struct Sum {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
  __device__ __forceinline__ unsigned operator()(unsigned a, unsigned b) const { return max(a, b); }
};

// Over groups of kWidth lanes, every kStride-th; all of them receive the result.
template <class Operation, int kWidth = 32, int kStride = 1, class T>
__device__ __forceinline__ T reduce(T x) {
#pragma unroll
  for (int o = kWidth / 2 * kStride; o >= kStride; o >>= 1) x = Operation()(x, __shfl_xor_sync(kAllLanes, x, o));
  return x;
}

// Over the warp: one instruction from sm_80 on.
__device__ __forceinline__ unsigned reduce_sum(unsigned x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  return reduce<Sum>(x);
#else
  return __reduce_add_sync(kAllLanes, x);
#endif
}

__device__ __forceinline__ unsigned reduce_max(unsigned x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  return reduce<Max>(x);
#else
  return __reduce_max_sync(kAllLanes, x);
#endif
}

// Its halves one after the other.
__device__ __forceinline__ unsigned long long reduce_max(unsigned long long x) {
  const auto upper = static_cast<unsigned>(x >> 32), highest = reduce_max(upper);
  return 1ull * highest << 32 | reduce_max(upper == highest ? static_cast<unsigned>(x) : 0u);
}

// Eight values a lane over groups of eight lanes, every kStride-th: lane number `sub` of a group receives the group's
// sum of value `sub`.  Seven shuffles instead of the 24 of eight separate sums.
template <int kStride = 1>
__device__ __forceinline__ float eight_sums(float (&v)[8], int sub) {
#pragma unroll
  for (int o = 4; o; o >>= 1) {
    const bool upper = sub & o;
#pragma unroll
    for (int i = 0; i < o; i++) {
      const float send = upper ? v[i] : v[i + o], keep = upper ? v[i + o] : v[i];
      v[i] = keep + __shfl_xor_sync(kAllLanes, send, o * kStride);
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
    const T lower = __shfl_up_sync(kAllLanes, sum, o);
    if (lane >= o) sum += lower;
  }
  total = __shfl_sync(kAllLanes, sum, 31);
  return sum - x;
}

// Unsigned order is the order of floats: NaN lowest, -0 equal to +0.
__device__ __forceinline__ unsigned ordered(float x) {
  if (x != x) return 0;
  const unsigned bits = __float_as_uint(x == 0.f ? 0.f : x);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

// What was ordered; NaN and +0 instead of every NaN and of -0.
__device__ __forceinline__ float unordered(unsigned key) {
  return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu));
}

}  // namespace visionzip::cuda
