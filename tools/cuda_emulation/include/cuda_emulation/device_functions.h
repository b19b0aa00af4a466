// CUDA's device functions for barriers, warps and memory, over the emulation.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda_emulation/emulation.h"

// The site of the call, for diagnoses.
#define EMULATION_SITE ::cuda_emulation::Site site = ::cuda_emulation::Site::current()

namespace cuda_emulation {

template <class T>
uint64_t bits_of(const T& value) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

template <class T>
T value_of(uint64_t bits) {
  T value;
  std::memcpy(static_cast<void*>(&value), &bits, sizeof value);
  return value;
}

template <class T>
T shuffled(unsigned mask, Shuffle how, const T& value, unsigned operand, int width, Site site) {
  return value_of<T>(shuffle(mask, how, bits_of(value), operand, static_cast<unsigned>(width), site));
}

// Replaces the value at `address` by update(value); returns what was there.
template <class T, class Update>
T atomic_update(T* address, const Update& update, Site site) {
  for (;;) {
    const uint64_t before = load_relaxed(address, sizeof(T), site);
    const T value = value_of<T>(before);
    if (compare_exchange(address, sizeof(T), before, bits_of<T>(update(value)), site)) return value;
  }
}

}  // namespace cuda_emulation

// --- blocks ---

inline void __syncthreads(EMULATION_SITE) { cuda_emulation::block_barrier(true, site); }

inline int __syncthreads_count(int predicate, EMULATION_SITE) {
  return static_cast<int>(cuda_emulation::block_barrier(predicate != 0, site).true_count);
}

inline int __syncthreads_and(int predicate, EMULATION_SITE) {
  return cuda_emulation::block_barrier(predicate != 0, site).all;
}

inline int __syncthreads_or(int predicate, EMULATION_SITE) {
  return cuda_emulation::block_barrier(predicate != 0, site).any;
}

inline void __nanosleep(unsigned, EMULATION_SITE) { cuda_emulation::yield(site); }

[[noreturn]] inline void __trap(EMULATION_SITE) { cuda_emulation::fail("__trap", site); }

// --- warps ---

inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATION_SITE) {
  cuda_emulation::meet(mask, cuda_emulation::Meeting::kSync, nullptr, nullptr, site);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, EMULATION_SITE) {
  using cuda_emulation::Shuffle;
  return cuda_emulation::shuffled(mask, Shuffle::kIndex, value, static_cast<unsigned>(lane), width, site);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32, EMULATION_SITE) {
  return cuda_emulation::shuffled(mask, cuda_emulation::Shuffle::kUp, value, distance, width, site);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32, EMULATION_SITE) {
  return cuda_emulation::shuffled(mask, cuda_emulation::Shuffle::kDown, value, distance, width, site);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMULATION_SITE) {
  using cuda_emulation::Shuffle;
  return cuda_emulation::shuffled(mask, Shuffle::kXor, value, static_cast<unsigned>(lanes), width, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATION_SITE) {
  return cuda_emulation::ballot(mask, predicate != 0, site);
}

inline int __any_sync(unsigned mask, int predicate, EMULATION_SITE) {
  return cuda_emulation::ballot(mask, predicate != 0, site) != 0;
}

inline int __all_sync(unsigned mask, int predicate, EMULATION_SITE) {
  return cuda_emulation::ballot(mask, predicate == 0, site) == 0;
}

template <class T>
unsigned __match_any_sync(unsigned mask, T value, EMULATION_SITE) {
  return cuda_emulation::match_any(mask, cuda_emulation::bits_of(value), site);
}

// The weakest answer that CUDA allows: other lanes may have diverged.
inline unsigned __activemask() { return 1u << cuda_emulation::lane(); }

#define EMULATION_REDUCE(name, type, reduction)                                                                       \
  inline type __reduce_##name##_sync(unsigned mask, type value, EMULATION_SITE) {                                     \
    using cuda_emulation::Reduction;                                                                                  \
    return static_cast<type>(cuda_emulation::reduce(mask, Reduction::reduction, static_cast<unsigned>(value), site)); \
  }
EMULATION_REDUCE(add, unsigned, kAdd)
EMULATION_REDUCE(add, int, kAdd)
EMULATION_REDUCE(min, unsigned, kMin)
EMULATION_REDUCE(min, int, kSignedMin)
EMULATION_REDUCE(max, unsigned, kMax)
EMULATION_REDUCE(max, int, kSignedMax)
EMULATION_REDUCE(and, unsigned, kAnd)
EMULATION_REDUCE(or, unsigned, kOr)
EMULATION_REDUCE(xor, unsigned, kXor)
#undef EMULATION_REDUCE

// --- memory ---

inline void __threadfence() { cuda_emulation::fence(); }
inline void __threadfence_block() { cuda_emulation::fence(); }
inline void __threadfence_system() { cuda_emulation::fence(); }

// Cache hints say nothing here.
#define EMULATION_LOAD(name) \
  template <class T>         \
  T name(const T* address) { \
    return *address;         \
  }
EMULATION_LOAD(__ldg)
EMULATION_LOAD(__ldca)
EMULATION_LOAD(__ldcg)
EMULATION_LOAD(__ldcs)
EMULATION_LOAD(__ldcv)
EMULATION_LOAD(__ldlu)
#undef EMULATION_LOAD

#define EMULATION_STORE(name)                            \
  template <class T>                                     \
  void name(T* address, std::type_identity_t<T> value) { \
    *address = value;                                    \
  }
EMULATION_STORE(__stwb)
EMULATION_STORE(__stcg)
EMULATION_STORE(__stcs)
EMULATION_STORE(__stwt)
#undef EMULATION_STORE

#define EMULATION_ATOMIC(name, expression)                                     \
  template <class T>                                                           \
  T name(T* address, std::type_identity_t<T> value, EMULATION_SITE) {          \
    const auto update = [value](T old) { return static_cast<T>(expression); }; \
    return cuda_emulation::atomic_update(address, update, site);               \
  }
EMULATION_ATOMIC(atomicAdd, old + value)
EMULATION_ATOMIC(atomicSub, old - value)
EMULATION_ATOMIC(atomicMin, value < old ? value : old)
EMULATION_ATOMIC(atomicMax, old < value ? value : old)
EMULATION_ATOMIC(atomicAnd, old& value)
EMULATION_ATOMIC(atomicOr, old | value)
EMULATION_ATOMIC(atomicXor, old ^ value)
EMULATION_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
#undef EMULATION_ATOMIC

template <class T>
T atomicExch(T* address, std::type_identity_t<T> value, EMULATION_SITE) {
  return cuda_emulation::atomic_update(address, [value](T) { return value; }, site);
}

template <class T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value, EMULATION_SITE) {
  const auto update = [expected, value](T old) { return old == expected ? value : old; };
  return cuda_emulation::atomic_update(address, update, site);
}

#undef EMULATION_SITE
