// CUDA kernels, executed on the host: what kernels, ptx.cuh and drivers may call.  Test only.
//
// Every CUDA thread is a fiber, and every block an OS thread of its own, so that __shared__ can be thread_local.  Of
// the blocks that may wait for one another (a cluster, or the whole grid of a cooperative launch: a group) one runs at
// a time, until it waits or the schedule hands over.  So a group is executed deterministically: the same seed, the same
// interleaving.  Independent groups run at the same time, on a few cores.
//
// A kernel that breaks a rule ends its launch with a diagnosis: the launch returns cudaErrorLaunchFailure, and
// cudaGetErrorString of that is the diagnosis, with file and line.  Which rules: docs/kernel_testing.md.
//
// The environment is read at every launch:
//
//   CUDA_EMULATION_SEED     0 (the default): threads in order, each as far as it gets, asynchronous copies as late
//                                as they may land.  Others: a random schedule each.
//   CUDA_EMULATION_WORKERS  how many groups run at the same time; by default one a core
//   CUDA_EMULATION_ARCH     the device's compute capability, 75 to 120; 90
//   CUDA_EMULATION_SMS      its number of multiprocessors; 132
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>

namespace cuda_emulation {

// Where in a kernel a call was made; the default argument of everything that a kernel may wait in or be blamed for.
using Site = std::source_location;

// --- blocks ---

struct BarrierResult {
  unsigned true_count;  // of the predicates
  bool all, any;
};

BarrierResult block_barrier(bool predicate, Site site);

// Dynamic shared memory; aligned to 16 bytes, as CUDA promises, and to no more.
void* dynamic_shared();

// Lets other threads run.  A loop that waits for another block has to call it, or one of the functions that do:
// __nanosleep, load_acquire and, once in a while, atomics.
void yield(Site site);

// --- warps ---

unsigned lane();

// What lanes meet for: those that wait for one another must wait for the same.
enum class Meeting : uint8_t { kSync, kShuffle, kVote, kMatch, kReduce, kMatrix };

// Returns once all lanes of `mask` have called it.  The last to come runs `complete` for all of them: arguments[lane]
// is what that lane passed.
void meet(unsigned mask, Meeting kind, void* argument, void (*complete)(void** arguments, unsigned lanes), Site site);

enum class Shuffle : uint8_t { kIndex, kUp, kDown, kXor };
uint64_t shuffle(unsigned mask, Shuffle how, uint64_t bits, unsigned operand, unsigned width, Site site);

unsigned ballot(unsigned mask, bool predicate, Site site);
unsigned match_any(unsigned mask, uint64_t bits, Site site);

enum class Reduction : uint8_t { kAdd, kMin, kMax, kSignedMin, kSignedMax, kAnd, kOr, kXor };
unsigned reduce(unsigned mask, Reduction how, unsigned value, Site site);

// --- matrix products of a warp, all of whose lanes must call them (compute capability 8.0) ---

// ldmatrix of four matrices: `row` is one of 16 bytes in shared memory.
void load_matrices(uint32_t (&to)[4], const void* row, Site site);

// mma: d (16 x 8) += a (16 x depth) b (depth x 8), lanes holding what CUDA says; depth 8 or 16.  Of each element the
// products are added in ascending order.
void multiply_matrices(float (&d)[4], const uint32_t* a, const uint32_t* b, int depth, float (*element_of)(uint16_t),
                       Site site);

int compute_capability();  // 90 for 9.0

// --- clusters ---

unsigned cluster_rank(Site site = Site::current());
unsigned cluster_size(Site site = Site::current());

// A relaxed arrival orders no memory accesses.
enum class Arrival : uint8_t { kRelease, kRelaxed };
void cluster_arrive(Arrival arrival = Arrival::kRelease, Site site = Site::current());
void cluster_wait(Site site = Site::current());

// The same place in the shared memory of another block of the cluster.
void* peer_address(const void* own, unsigned rank, Site site);

template <class T>
T* cluster_peer(T* own, unsigned rank, Site site = Site::current()) {
  return static_cast<T*>(peer_address(own, rank, site));
}

// --- memory ---

// cp.async: copies `copied` bytes and fills up to `bytes` with zeros, at some time until the thread waits for it.
void copy_async(void* shared, const void* global, unsigned bytes, unsigned copied, Site site = Site::current());
void commit_copies();
void wait_for_copies(unsigned groups_that_may_be_pending);

void fence();

// Atomic accesses of 2, 4 or 8 bytes, of no memory order but for load_acquire.
uint64_t load_relaxed(const void* address, size_t size, Site site);
uint64_t load_acquire(const void* address, size_t size, Site site);
bool compare_exchange(void* address, size_t size, uint64_t expected, uint64_t desired, Site site);

// For host bodies of instructions that demand it.
void check_aligned(const void* address, size_t alignment, Site site);

// Ends the launch.
[[noreturn]] void fail(const char* what, Site site);

// Tells the race checker of an access that the compiler does not see: one made by a host body of an instruction.
void note_read(const void* address, size_t bytes, Site site);
void note_write(void* address, size_t bytes, Site site);

}  // namespace cuda_emulation
