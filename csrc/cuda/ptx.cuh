// The only file with inline PTX.  Every function has a body for the host, where the kernels run in emulation.
#pragma once

#include <cstdint>

#ifdef VISIONZIP_EMULATION
#include "emulation/ptx.h"
#else

namespace visionzip::cuda::ptx {

// ---- asynchronous copies of 16 bytes from global to shared memory; before sm_80 an ordinary copy
// ------------------------

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
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

// ---- global memory --------------------------------------------------------------------------------------------------

__device__ __forceinline__ unsigned load_acquire(const unsigned* p) {
  unsigned x;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
  return x;
}

// Of data that is read once: it does not displace anything in the first-level cache.
__device__ __forceinline__ uint4 load_once16(const void* p) {
  uint4 x;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(p));
  return x;
}

// One store.  Of an assignment the compiler sometimes makes four of 32 bits.
__device__ __forceinline__ void store16(void* p, uint4 x) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}

// ---- thread-block clusters (sm_90 and later; only kernels compiled for these use them)
// -------------------------------

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
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
// The same place in the shared memory of block `rank` of the cluster.
template <class T>
__device__ __forceinline__ T* cluster_peer(T* p, unsigned rank) {
  T* peer;
  asm("mapa.u64 %0, %1, %2;" : "=l"(peer) : "l"(p), "r"(rank));
  return peer;
}
#endif

}  // namespace visionzip::cuda::ptx

#endif
