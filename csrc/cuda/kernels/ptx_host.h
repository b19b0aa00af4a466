// The host bodies of csrc/cuda/ptx.cuh.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cuda_emulation/emulation.h"

namespace visionzip::cuda::ptx {

using cuda_emulation::Site;

inline void copy_async16(void* shared, const void* global, Site site = Site::current()) {
  cuda_emulation::copy_async(shared, global, 16, 16, site);
}

inline void copy_async_commit() { cuda_emulation::commit_copies(); }

template <int kPending>
void copy_async_wait() {
  cuda_emulation::wait_for_copies(kPending);
}

inline bool has_matrix_products() { return cuda_emulation::compute_capability() >= 80; }

inline void load_matrices(uint32_t (&to)[4], const void* row, Site site = Site::current()) {
  cuda_emulation::load_matrices(to, row, site);
}

template <class T>
float element_of(uint16_t bits) {
  if constexpr (std::is_same_v<T, __half>) {
    __half_raw raw;
    raw.x = bits;
    return __half2float(__half(raw));
  } else {
    return __uint_as_float(uint32_t{bits} << 16);
  }
}

template <class T>
void multiply_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site site = Site::current()) {
  const uint32_t b[2] = {b0, b1};
  cuda_emulation::multiply_matrices(d, a, b, 16, element_of<T>, site);
}

template <class T>
void multiply_16x8x8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b, Site site = Site::current()) {
  const uint32_t a[2] = {a0, a1};
  cuda_emulation::multiply_matrices(d, a, &b, 8, element_of<T>, site);
}

inline float exp2_approximate(float x) {
  const float y = std::exp2(x);
  return y < 1.17549435e-38f ? 0.f : y;
}

inline unsigned load_acquire(const unsigned* p, Site site = Site::current()) {
  return static_cast<unsigned>(cuda_emulation::load_acquire(p, sizeof *p, site));
}

inline uint4 load_once16(const void* p, Site site = Site::current()) {
  cuda_emulation::check_aligned(p, 16, site);
  return *static_cast<const uint4*>(p);
}

inline void store16(void* p, uint4 x, Site site = Site::current()) {
  cuda_emulation::check_aligned(p, 16, site);
  *static_cast<uint4*>(p) = x;
}

inline int cluster_rank(Site site = Site::current()) { return static_cast<int>(cuda_emulation::cluster_rank(site)); }

inline int cluster_size(Site site = Site::current()) { return static_cast<int>(cuda_emulation::cluster_size(site)); }

inline void cluster_arrive(Site site = Site::current()) {
  cuda_emulation::cluster_arrive(cuda_emulation::Arrival::kRelease, site);
}

inline void cluster_arrive_relaxed(Site site = Site::current()) {
  cuda_emulation::cluster_arrive(cuda_emulation::Arrival::kRelaxed, site);
}

inline void cluster_wait(Site site = Site::current()) { cuda_emulation::cluster_wait(site); }

template <class T>
T* cluster_peer(T* p, unsigned rank, Site site = Site::current()) {
  return cuda_emulation::cluster_peer(p, rank, site);
}

}  // namespace visionzip::cuda::ptx
