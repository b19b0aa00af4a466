// Sixteen bytes of elements as one unit: the fused kernel loads, stages and stores hidden and keys in these.
#pragma once

#include "cuda/kernels/element.cuh"
#include "cuda/kernels/ptx.cuh"

namespace visionzip::cuda {

template <class T>
union Vector16 {
  uint4 raw;
  T element[kElements<T>];
  __device__ Vector16() {}
};

template <class T>
__device__ __forceinline__ void unpack(uint4 raw, float (&to)[kElements<T>]) {
  Vector16<T> v;
  v.raw = raw;
#pragma unroll
  for (int e = 0; e < kElements<T>; e++) to[e] = widen(v.element[e]);
}

template <class T>
__device__ __forceinline__ uint4 pack(const float (&from)[kElements<T>]) {
  Vector16<T> v;
#pragma unroll
  for (int e = 0; e < kElements<T>; e++) narrow(from[e], v.element[e]);
  return v.raw;
}

// n elements from p, the rest zero; one load where kWide says that the whole vector is there and aligned.
template <bool kWide, class T>
__device__ __forceinline__ uint4 load_vector(const T* p, int n) {
  if (kWide) return ptx::load_once16(p);
  Vector16<T> v;
  v.raw = make_uint4(0, 0, 0, 0);
#pragma unroll
  for (int e = 0; e < kElements<T>; e++) {
    if (e < n) v.element[e] = p[e];
  }
  return v.raw;
}

}  // namespace visionzip::cuda
