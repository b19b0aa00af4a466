// What CUDA's device functions (device_functions.h) are made of, and what the host bodies of a project's own inline PTX
// may call.  All of it is called from kernels only.
//
// Every CUDA thread is a fiber, and every block an OS thread of its own, so that __shared__ can be thread_local. Blocks
// that may wait for one another (a cluster, or the whole grid of a cooperative launch) are a block set: of these one
// block runs at a time, until it waits or the schedule hands over.  So a block set is executed deterministically: the
// same seed, the same interleaving.  Different sets run at the same time, on as many cores as there are workers.
//
// A kernel that breaks a rule ends its launch with a diagnosis: the launch returns cudaErrorLaunchFailure, and
// cudaGetErrorString of that is the diagnosis, with file and line.  README.md says which rules, and which environment
// variables choose the schedule and the device.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <source_location>

namespace cuda_emulation {

// Where in a kernel a call was made; the last argument of everything that a kernel may wait in or be blamed for.  A
// project's host body of an instruction has such an argument as well and passes it on: then a diagnosis names the
// kernel's line.
using Site = std::source_location;

// --- blocks ---

// Returns of how many threads the predicate was true.
unsigned block_barrier(bool predicate, Site site = Site::current());

// Dynamic shared memory; aligned to 16 bytes, as CUDA promises, and to no more.
void* dynamic_shared();

// Lets other threads run.  A loop that waits for another block has to call it, or one of the functions that do:
// __nanosleep, load_acquire and, once in a while, atomics.
void yield(Site site = Site::current());

// Ends the launch with this diagnosis.
[[noreturn]] void fail(const char* what, Site site = Site::current());

// --- warps: each returns once all lanes of `mask` have called it ---

void sync_warp(unsigned mask, Site site = Site::current());

enum class Shuffle : uint8_t { kIndex, kUp, kDown, kXor };
uint64_t shuffle(unsigned mask, Shuffle how, uint64_t bits, unsigned operand, unsigned width,
                 Site site = Site::current());

unsigned ballot(unsigned mask, bool predicate, Site site = Site::current());
unsigned match_any(unsigned mask, uint64_t bits, Site site = Site::current());

// The lanes' values, combined in ascending order of the lanes.
unsigned reduce(unsigned mask, unsigned value, unsigned (*combine)(unsigned, unsigned), Site site = Site::current());

// --- matrix products of a warp, all of whose lanes must call them (compute capability 8.0) ---

// ldmatrix.x4: `row` is one of 16 bytes in shared memory.
void load_matrices(uint32_t (&to)[4], const void* row, Site site = Site::current());

// mma: d (16 x 8) += a (16 x depth) b (depth x 8), lanes holding what CUDA says; depth 8 or 16.  Of each element the
// products are added in ascending order.
void multiply_matrices(float (&d)[4], const uint32_t* a, const uint32_t* b, int depth, float (*element_of)(uint16_t),
                       Site site = Site::current());

// T: the elements' type, __half or __nv_bfloat16.
template <class T>
void multiply_matrices(float (&d)[4], const uint32_t* a, const uint32_t* b, int depth, Site site = Site::current()) {
  const auto element_of = [](uint16_t bits) { return static_cast<float>(std::bit_cast<T>(bits)); };
  multiply_matrices(d, a, b, depth, element_of, site);
}

// --- clusters (compute capability 9.0) ---

int cluster_rank(Site site = Site::current());
int cluster_size(Site site = Site::current());

// The two halves of a cluster's barrier.  A relaxed arrival orders no memory accesses.
void cluster_arrive(Site site = Site::current());
void cluster_arrive_relaxed(Site site = Site::current());
void cluster_wait(Site site = Site::current());

// mapa: the same place in the shared memory of another block of the cluster.
void* map_shared_rank(const void* own, unsigned rank, Site site = Site::current());

template <class T>
T* map_shared_rank(T* own, unsigned rank, Site site = Site::current()) {
  return static_cast<T*>(map_shared_rank(static_cast<const void*>(own), rank, site));
}

// --- memory ---

// cp.async of 4, 8 or 16 bytes: they are written at some time until the thread waits for it.
void copy_async(void* shared, const void* global, unsigned bytes, Site site = Site::current());
void commit_copies();
void wait_for_copies(unsigned groups_that_may_be_pending);

void fence();

// Atomic accesses of 2, 4 or 8 bytes, of no memory order but for load_acquire.
uint64_t load_relaxed(const void* address, size_t size, Site site = Site::current());
uint64_t load_acquire(const void* address, size_t size, Site site = Site::current());
bool compare_exchange(void* address, size_t size, uint64_t expected, uint64_t desired, Site site = Site::current());

// For instructions that demand it.
void check_aligned(const void* address, size_t alignment, Site site = Site::current());

// --- the device ---

int compute_capability();  // 90 for 9.0

}  // namespace cuda_emulation
