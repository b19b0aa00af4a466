// The host bodies of csrc/cuda/ptx.cuh.
#pragma once

#include <cuda_runtime_api.h>

#include "emulation.h"

namespace visionzip::cuda::ptx {

using emulation::Site;

inline void copy_async16(void* shared, const void* global, Site site = Site::current()) {
  emulation::copy_async(shared, global, 16, 16, site);
}

inline void copy_async_commit() { emulation::commit_copies(); }

template <int kPending>
void copy_async_wait() {
  emulation::wait_for_copies(kPending);
}

inline unsigned load_acquire(const unsigned* p, Site site = Site::current()) {
  return static_cast<unsigned>(emulation::load_acquire(p, sizeof *p, site));
}

inline uint4 load_once16(const void* p, Site site = Site::current()) {
  emulation::check_aligned(p, 16, site);
  return *static_cast<const uint4*>(p);
}

inline void store16(void* p, uint4 x, Site site = Site::current()) {
  emulation::check_aligned(p, 16, site);
  *static_cast<uint4*>(p) = x;
}

inline int cluster_rank(Site site = Site::current()) { return static_cast<int>(emulation::cluster_rank(site)); }

inline int cluster_size(Site site = Site::current()) { return static_cast<int>(emulation::cluster_size(site)); }

inline void cluster_arrive(Site site = Site::current()) {
  emulation::cluster_arrive(emulation::Arrival::kRelease, site);
}

inline void cluster_arrive_relaxed(Site site = Site::current()) {
  emulation::cluster_arrive(emulation::Arrival::kRelaxed, site);
}

inline void cluster_wait(Site site = Site::current()) { emulation::cluster_wait(site); }

template <class T>
T* cluster_peer(T* p, unsigned rank, Site site = Site::current()) {
  return emulation::cluster_peer(p, rank, site);
}

}  // namespace visionzip::cuda::ptx
