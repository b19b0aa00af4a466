// One vector of floats of the instruction set that the including file is compiled for (GCC/Clang vector extensions).
//
// Everything here lives in a namespace of that instruction set and has internal linkage: the same source is compiled
// several times, and the linker must never choose one build's function for another's.  For the same reason no function
// template of the standard library is used in kernel code.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef VISIONZIP_ISA
#error "define VISIONZIP_ISA (the namespace of this build of the kernels) before including simd.h"
#endif

namespace visionzip::VISIONZIP_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t BitVec __attribute__((vector_size(kLanes * 4)));
typedef double DoubleVec __attribute__((vector_size(kLanes * 8)));
typedef uint16_t HalfBitVec __attribute__((vector_size(kLanes * 2)));

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

constexpr float kInfinity = __builtin_inff();

static inline Vec broadcast(float x) { return x - Vec{}; }
static inline BitVec bits_of(Vec v) { return reinterpret_cast<BitVec>(v); }
static inline Vec from_bits(BitVec v) { return reinterpret_cast<Vec>(v); }
static inline Vec choose(IntVec mask, Vec yes, Vec no) {
  const BitVec m = reinterpret_cast<BitVec>(mask);
  return from_bits((bits_of(yes) & m) | (bits_of(no) & ~m));
}

// ---- load and store ------------------------------------------------------------------------------------------------

static inline Vec load(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}

static inline HalfBitVec load_half_bits(const void* p) {
  HalfBitVec v;
  memcpy(&v, p, sizeof v);
  return v;
}

// One instruction; what GCC 12 makes of a conversion to 16 lanes is five.
static inline BitVec widen_bits(HalfBitVec h) {
#if defined(__AVX512F__)
  return reinterpret_cast<BitVec>(_mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(h)));
#elif defined(__AVX2__)
  return reinterpret_cast<BitVec>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(h)));
#else
  return __builtin_convertvector(h, BitVec);
#endif
}

static inline Vec load(const BFloat16* p) { return from_bits(widen_bits(load_half_bits(p)) << 16); }

#if defined(__AVX512F__)
static inline Vec widen_half(HalfBitVec h) {
  return reinterpret_cast<Vec>(_mm512_cvtph_ps(reinterpret_cast<__m256i>(h)));
}
static inline HalfBitVec narrow_half(Vec v) {
  return reinterpret_cast<HalfBitVec>(
      _mm512_cvtps_ph(reinterpret_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__F16C__)
static inline Vec widen_half(HalfBitVec h) {
  return reinterpret_cast<Vec>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(h)));
}
static inline HalfBitVec narrow_half(Vec v) {
  return reinterpret_cast<HalfBitVec>(
      _mm256_cvtps_ph(reinterpret_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__aarch64__)
static inline Vec widen_half(HalfBitVec h) {
  return reinterpret_cast<Vec>(vcvt_f32_f16(reinterpret_cast<float16x4_t>(h)));
}
static inline HalfBitVec narrow_half(Vec v) {
  return reinterpret_cast<HalfBitVec>(vcvt_f16_f32(reinterpret_cast<float32x4_t>(v)));
}
#else
// Without a conversion instruction: a half's exponent and mantissa are moved to where a float has them and the bias is
// mended by a multiplication (normal numbers) or by a subtraction (subnormal ones).
static inline Vec widen_half(HalfBitVec h) {
  const BitVec w = __builtin_convertvector(h, BitVec) << 16;
  const BitVec sign = w & 0x80000000u, magnitude = w + w;
  const Vec normal = from_bits((magnitude >> 4) + (0xE0u << 23)) * 0x1p-112f;
  const Vec subnormal = from_bits((magnitude >> 17) | (126u << 23)) - 0.5f;
  const IntVec is_subnormal = reinterpret_cast<IntVec>(magnitude < (1u << 27));
  return from_bits(sign | bits_of(choose(is_subnormal, subnormal, normal)));
}
static inline HalfBitVec narrow_half(Vec v) {
  const BitVec w = bits_of(v), sign = w & 0x80000000u, magnitude = w + w;
  const Vec absolute = from_bits(w & 0x7fffffffu);
  BitVec bias = magnitude & 0xff000000u;
  const BitVec small = reinterpret_cast<BitVec>(bias < 0x71000000u);
  bias = (small & 0x71000000u) | (bias & ~small);
  const BitVec base = bits_of(from_bits((bias >> 1) + 0x07800000u) + (absolute * 0x1p112f) * 0x1p-110f);
  const BitVec finite = ((base >> 13) & 0x7c00u) + (base & 0x0fffu);
  const BitVec nan = reinterpret_cast<BitVec>(magnitude > 0xff000000u);
  return __builtin_convertvector((sign >> 16) | (nan & 0x7e00u) | (finite & ~nan), HalfBitVec);
}
#endif

static inline Vec load(const Half* p) { return widen_half(load_half_bits(p)); }

static inline void store(float* p, Vec v) { memcpy(p, &v, sizeof v); }
static inline void store(Half* p, Vec v) {
  const HalfBitVec h = narrow_half(v);
  memcpy(p, &h, sizeof h);
}
// Round to nearest even; a NaN stays one.
static inline void store(BFloat16* p, Vec v) {
  const BitVec w = bits_of(v);
  const BitVec nan = reinterpret_cast<BitVec>((w & 0x7fffffffu) > 0x7f800000u);
  const BitVec rounded = (w + 0x7fffu + ((w >> 16) & 1u)) >> 16, quiet = (w >> 16) | 0x40u;
  const HalfBitVec h = __builtin_convertvector((nan & quiet) | (rounded & ~nan), HalfBitVec);
  memcpy(p, &h, sizeof h);
}

// The first n lanes (n < kLanes); the others are zero, and left alone in memory.
template <class T>
static inline Vec load_first(const T* p, int64_t n) {
  T part[kLanes] = {};
  memcpy(part, p, static_cast<size_t>(n) * sizeof(T));
  return load(part);
}
template <class T>
static inline void store_first(T* p, Vec v, int64_t n) {
  T part[kLanes];
  store(part, v);
  memcpy(p, part, static_cast<size_t>(n) * sizeof(T));
}
template <class T>
static inline Vec load_up_to(const T* p, int64_t n) {
  return n >= kLanes ? load(p) : load_first(p, n);
}
template <class T>
static inline void store_up_to(T* p, Vec v, int64_t n) {
  if (n >= kLanes) {
    store(p, v);
  } else {
    store_first(p, v, n);
  }
}

constexpr int64_t kCacheLine = 64;  // bytes

// Into the second-level cache, which has more fetches under way than the first.
template <class T>
static inline void fetch(const T* element) {
  __builtin_prefetch(element, 0, 2);
}

// ---- arithmetic ----------------------------------------------------------------------------------------------------

// The larger, the smaller; b where either is NaN.
#if defined(__AVX512F__)  // the masked forms, all lanes on: of the others, GCC 12 warns of its own header
static inline Vec max(Vec a, Vec b) {
  return reinterpret_cast<Vec>(_mm512_maskz_max_ps(0xffff, reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
}
static inline Vec min(Vec a, Vec b) {
  return reinterpret_cast<Vec>(_mm512_maskz_min_ps(0xffff, reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
}
#elif defined(__AVX2__)
static inline Vec max(Vec a, Vec b) {
  return reinterpret_cast<Vec>(_mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
}
static inline Vec min(Vec a, Vec b) {
  return reinterpret_cast<Vec>(_mm256_min_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
}
#else
static inline Vec max(Vec a, Vec b) { return choose(a > b, a, b); }
static inline Vec min(Vec a, Vec b) { return choose(a < b, a, b); }
#endif

// The lanes of a and b alternately, kLanes / 2 of each, from lane kFrom on.
template <int kFrom, int... kLane>
static inline Vec interleave(Vec a, Vec b, std::integer_sequence<int, kLane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (kFrom + kLane / 2 + (kLane % 2 ? kLanes : 0))...);
#else
  return __builtin_shuffle(a, b, IntVec{(kFrom + kLane / 2 + (kLane % 2 ? kLanes : 0))...});
#endif
}

// Rows become columns: log2(kLanes) times, row i and row i + kLanes / 2 are interleaved into rows 2 i and 2 i + 1.
static inline void transpose(Vec (&rows)[kLanes]) {
  constexpr std::make_integer_sequence<int, kLanes> all_lanes{};
  for (int width = 1; width < kLanes; width *= 2) {
    Vec next[kLanes];
    for (int i = 0; i < kLanes / 2; i++) {
      next[2 * i] = interleave<0>(rows[i], rows[i + kLanes / 2], all_lanes);
      next[2 * i + 1] = interleave<kLanes / 2>(rows[i], rows[i + kLanes / 2], all_lanes);
    }
    for (int i = 0; i < kLanes; i++) rows[i] = next[i];
  }
}

// Lanes are added in a fixed tree.
#if defined(__AVX512F__)
static inline float sum_lanes(Vec v) { return _mm512_reduce_add_ps(reinterpret_cast<__m512>(v)); }
#else
static inline float sum_lanes(Vec v) {
  float lane[kLanes];
  memcpy(lane, &v, sizeof lane);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; i++) lane[i] += lane[i + width];
  }
  return lane[0];
}
#endif

// Of each pair of parts that the groups of kGroup lanes have, the first (kSecond = 0) or the second; those of a, then
// b's.
template <int kGroup, int kSecond, int... kLane>
static inline Vec half_groups(Vec a, Vec b, std::integer_sequence<int, kLane...>) {
  constexpr int kHalf = kGroup / 2;
  constexpr auto from = [](int lane) { return lane / kHalf * kGroup + lane % kHalf + kSecond * kHalf; };
#if defined(__clang__)
  return __builtin_shufflevector(a, b, from(kLane)...);
#else
  return __builtin_shuffle(a, b, IntVec{from(kLane)...});
#endif
}

// Lane i: sum_lanes(v[i]), by the same tree.
template <int kGroup = kLanes>
static inline Vec sum_lanes_of_each(Vec (&v)[kGroup]) {
  constexpr std::make_integer_sequence<int, kLanes> all_lanes{};
  Vec halves[kGroup / 2];
  for (int i = 0; i < kGroup / 2; i++) {
    halves[i] = half_groups<kGroup, 0>(v[2 * i], v[2 * i + 1], all_lanes) +
                half_groups<kGroup, 1>(v[2 * i], v[2 * i + 1], all_lanes);
  }
  if constexpr (kGroup == 2) {
    return halves[0];
  } else {
    return sum_lanes_of_each<kGroup / 2>(halves);
  }
}

static inline float max_lanes(Vec v) {  // NaN where there is one
  float lane[kLanes];
  memcpy(lane, &v, sizeof lane);
  float most = lane[0];
  for (int i = 1; i < kLanes; i++) most = lane[i] > most || lane[i] != lane[i] ? lane[i] : most;
  return most;
}

// The largest lane that is a number; -inf where there is none.
static inline float max_number(Vec v) {
  const Vec numbers = choose(v == v, v, broadcast(-kInfinity));
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(reinterpret_cast<__m512>(numbers));
#else
  float lane[kLanes];
  memcpy(lane, &numbers, sizeof lane);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; i++) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
  }
  return lane[0];
#endif
}

// The first lane that is set, or kLanes.
static inline int first_lane(IntVec mask) {
#if defined(__AVX512F__)
  const unsigned set = _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
#elif defined(__AVX2__)
  const unsigned set = static_cast<unsigned>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
#else
  unsigned set = 0;
  for (int i = 0; i < kLanes; i++) set |= (static_cast<unsigned>(mask[i]) & 1u) << i;
#endif
  return set ? __builtin_ctz(set) : kLanes;
}

constexpr float kLog2E = 1.44269504088896341f;

// 2^x, relative error below 2e-7; NaN stays NaN, and x below -125 gives 2^-125.  x is rounded to an integer n by adding
// 1.5 * 2^23, whose last bits n then is; the rest, in [-0.5, 0.5], goes through a polynomial of degree 5 (relative
// minimax, 7.5e-8) that gives twice its power of two; that is multiplied by 2^(n - 1).  Not by adding n to its
// exponent, which would make a number of a NaN whose last bits are set.
static inline Vec exp2(Vec x) {
  constexpr uint32_t kHalfExponent = 126;  // of 2^-1; even, so that ties are rounded as without it
  constexpr float kRound = 0x1.8p23f + kHalfExponent;
  x = min(broadcast(127.f), max(broadcast(-125.f), x));
  const Vec shifted = x + kRound, f = x - (shifted - kRound);
  Vec p = f * (2 * 1.327647245e-03f) + 2 * 9.675540961e-03f;
  p = p * f + 2 * 5.550713092e-02f;
  p = p * f + 2 * 2.402212024e-01f;
  p = p * f + 2 * 6.931469440e-01f;
  p = p * f + 2 * 1.000000119e+00f;
  return p * from_bits(bits_of(shifted) << 23);
}

}  // namespace visionzip::VISIONZIP_ISA
