// The only file with inline PTX.  Beside it stands what it does when kernels are executed on the host
// (tools/cuda_emulation); there, functions that can be blamed for a fault are also told where they were called.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

namespace visionzip::cuda::ptx {

#ifdef CUDA_EMULATION
using cuda_emulation::Site;
#endif

// ---- asynchronous copies of 16 bytes from global to shared memory; before sm_80 an ordinary copy ----

#ifdef CUDA_EMULATION
inline void copy_async16(void* shared, const void* global, Site site = Site::current()) {
  cuda_emulation::copy_async(shared, global, 16, site);
}
inline void copy_async_commit() { cuda_emulation::commit_copies(); }
template <int kPending>
void copy_async_wait() {
  cuda_emulation::wait_for_copies(kPending);
}
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
__device__ __forceinline__ void copy_async16(void* shared, const void* global) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
#else
__device__ __forceinline__ void copy_async16(void* shared, const void* global) {
  *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
}
__device__ __forceinline__ void copy_async_commit() {}
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {}
#endif

// ---- matrix products of a warp: tensor cores ----
//
// load_matrices: four 8 x 8 matrices of 16-bit elements from shared memory.  Lane 8 i + j gives the address of matrix
// i's row j, and receives of each matrix the two elements from column 2 (lane % 4) on of row lane / 4.
//
// multiply_16x8x16: d (16 x 8) += a (16 x 16) b (16 x 8), in float.  a: four 8 x 8 matrices, down the rows first; b:
// two, transposed.  Each as load_matrices leaves them.  d[0], d[1]: row lane / 4, columns 2 (lane % 4) and the next;
// d[2], d[3]: eight rows further down.  multiply_16x8x8: the same with a (16 x 8) b (8 x 8).

#ifdef CUDA_EMULATION
inline bool has_matrix_products() { return cuda_emulation::compute_capability() >= 80; }

using cuda_emulation::load_matrices;

template <class T>
void multiply_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site site = Site::current()) {
  const uint32_t b[] = {b0, b1};
  cuda_emulation::multiply_matrices<T>(d, a, b, 16, site);
}

template <class T>
void multiply_16x8x8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b, Site site = Site::current()) {
  const uint32_t a[] = {a0, a1};
  cuda_emulation::multiply_matrices<T>(d, a, &b, 8, site);
}
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
constexpr __device__ __forceinline__ bool has_matrix_products() { return true; }

__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* row) {
  const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

template <class T>
__device__ __forceinline__ void multiply_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  static_assert(sizeof(T) == 2);
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

template <class T>
__device__ __forceinline__ void multiply_16x8x8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  static_assert(sizeof(T) == 2);
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(b));
  } else {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(b));
  }
}
#else  // sm_75 has none for bfloat16; the others' bodies are never reached
constexpr __device__ __forceinline__ bool has_matrix_products() { return false; }
__device__ __forceinline__ void load_matrices(uint32_t (&)[4], const void*) {}
template <class T>
__device__ __forceinline__ void multiply_16x8x16(float (&)[4], const uint32_t (&)[4], uint32_t, uint32_t) {}
template <class T>
__device__ __forceinline__ void multiply_16x8x8(float (&)[4], uint32_t, uint32_t, uint32_t) {}
#endif

// ---- arithmetic ----

// 2^x to 22 bits; what would be subnormal is zero.
__device__ __forceinline__ float exp2_approximate(float x) {
#ifdef CUDA_EMULATION
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.f : y;
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// ---- global memory ----
//
// load_once16: of data that is read once; it does not displace anything in the first-level cache.
// store16: one store.  Of an assignment the compiler sometimes makes four of 32 bits.
// prefetch: into the second-level cache.

#ifdef CUDA_EMULATION
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
inline void prefetch(const void*) {}
#else
__device__ __forceinline__ unsigned load_acquire(const unsigned* p) {
  unsigned x;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
  return x;
}
__device__ __forceinline__ uint4 load_once16(const void* p) {
  uint4 x;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(p));
  return x;
}
__device__ __forceinline__ void store16(void* p, uint4 x) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}
__device__ __forceinline__ void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
#endif

// ---- thread-block clusters (sm_90 and later; only kernels compiled for these use them) ----
//
// cluster_peer: the same place in the shared memory of block `rank` of the cluster.

#ifdef CUDA_EMULATION
using cuda_emulation::cluster_arrive;
using cuda_emulation::cluster_arrive_relaxed;
using cuda_emulation::cluster_rank;
using cuda_emulation::cluster_size;
using cuda_emulation::cluster_wait;
template <class T>
T* cluster_peer(T* p, unsigned rank, Site site = Site::current()) {
  return cuda_emulation::map_shared_rank(p, rank, site);
}
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__device__ __forceinline__ int cluster_rank() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ int cluster_size() {
  int size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
// Not `.aligned`: warps may arrive here diverged.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
__device__ __forceinline__ void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
template <class T>
__device__ __forceinline__ T* cluster_peer(T* p, unsigned rank) {
  T* peer;
  asm("mapa.u64 %0, %1, %2;" : "=l"(peer) : "l"(p), "r"(rank));
  return peer;
}
#endif

}  // namespace visionzip::cuda::ptx
