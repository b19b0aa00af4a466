// CUDA's device functions for numbers, as far as kernels that were executed here call them.  Approximate ones are
// computed exactly.
#pragma once

#include <bit>
#include <cmath>
#include <type_traits>

template <class T>
constexpr T min(T a, std::type_identity_t<T> b) {
  return b < a ? b : a;
}

template <class T>
constexpr T max(T a, std::type_identity_t<T> b) {
  return a < b ? b : a;
}

inline int __popc(unsigned x) { return std::popcount(x); }

inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }

// The kernels are compiled with -ffp-contract=off: what is not fused in the source is not fused.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdividef(float a, float b) { return a / b; }
