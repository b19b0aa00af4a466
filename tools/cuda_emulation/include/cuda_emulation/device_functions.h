// CUDA's device functions for barriers, warps and memory, as far as kernels that were executed here call them.
#pragma once

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
  return static_cast<int>(cuda_emulation::block_barrier(predicate != 0, site));
}

inline void __nanosleep(unsigned, EMULATION_SITE) { cuda_emulation::yield(site); }

// --- warps ---

inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATION_SITE) { cuda_emulation::sync_warp(mask, site); }

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

inline unsigned __reduce_add_sync(unsigned mask, unsigned value, EMULATION_SITE) {
  return cuda_emulation::reduce(mask, value, [](unsigned a, unsigned b) { return a + b; }, site);
}

inline unsigned __reduce_max_sync(unsigned mask, unsigned value, EMULATION_SITE) {
  return cuda_emulation::reduce(mask, value, [](unsigned a, unsigned b) { return a > b ? a : b; }, site);
}

inline int __reduce_min_sync(unsigned mask, int value, EMULATION_SITE) {
  const auto smaller = [](unsigned a, unsigned b) { return static_cast<int>(a) < static_cast<int>(b) ? a : b; };
  return static_cast<int>(cuda_emulation::reduce(mask, static_cast<unsigned>(value), smaller, site));
}

// --- memory ---

inline void __threadfence() { cuda_emulation::fence(); }

// Cache hints say nothing here.
template <class T>
T __ldcg(const T* address) {
  return *address;
}

template <class T>
T atomicAdd(T* address, std::type_identity_t<T> value, EMULATION_SITE) {
  return cuda_emulation::atomic_update(address, [value](T old) { return static_cast<T>(old + value); }, site);
}

template <class T>
T atomicMax(T* address, std::type_identity_t<T> value, EMULATION_SITE) {
  return cuda_emulation::atomic_update(address, [value](T old) { return old < value ? value : old; }, site);
}

#undef EMULATION_SITE
