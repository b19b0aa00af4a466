// The race checker's side of the runtime: what it is told.  It does nothing unless it is built in.
//
// Two accesses race if they touch the same byte, one of them writes, not both are atomic, and nothing orders them. What
// orders accesses: barriers of the block, __syncwarp among its lanes, the cluster's barrier unless it is relaxed, and
// an atomic that is fenced (or acquired) on both sides.  Shuffles and votes order nothing: so CUDA defines them.
//
// It sees shared memory, that of other blocks of the cluster included, and global memory, between blocks too.  Blocks
// of different block sets are never ordered, so no pattern by which they wait for one another (such as "the last block
// to finish") can be checked without a cooperative launch.  Copies by memcpy are not seen.  Of each 4 bytes the last
// few accesses are remembered, and one execution is seen: that it finds nothing proves nothing about other schedules,
// and nothing about memory ordering within what it takes to be ordered.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda_emulation/emulation.h"

#ifdef CUDA_EMULATION_RACES
#include "race_clocks.h"
#endif

namespace cuda_emulation {

class Block;
class BlockSet;
struct Cluster;
struct Launch;
struct Thread;

// At a cluster's barrier.  A relaxed arrival orders no memory accesses.
enum class Arrival : uint8_t { kRelease, kRelaxed };

namespace races {

// An asynchronous copy writes at some time between its issue and its completion, when the thread that issued it waits
// for it.
enum class Access : uint8_t { kRead, kWrite, kAtomicRead, kAtomicWrite, kCopyIssue, kCopyCompletion };

// What made an access: a place in the code, or where line is not 0, a line of the file that `where` names.
struct Origin {
  const void* where;
  uint32_t line;
};

inline Origin origin(const Site& site) { return {site.file_name(), site.line()}; }

#ifdef CUDA_EMULATION_RACES

constexpr bool kBuiltIn = true;

void begin_launch(const Launch& launch);
void begin_block_set(BlockSet& block_set);
void end_block_set(Launch& launch);

void start(Thread& thread);
void access(const void* address, size_t bytes, Access access, Origin origin);

void block_barrier(Block& block);
void sync_warp(Block& block, unsigned warp, unsigned lanes);
void cluster_arrive(Thread& thread, Arrival arrival);
void cluster_complete(Cluster& cluster);
void cluster_wait(Thread& thread);
void fence(Thread& thread);
void atomic_read(Thread& thread, const void* address, bool acquire);
void atomic_write(Thread& thread, const void* address);

#else

constexpr bool kBuiltIn = false;

struct ThreadClock {};
struct ClusterClock {};

inline void begin_launch(const Launch&) {}
inline void begin_block_set(BlockSet&) {}
inline void end_block_set(Launch&) {}
inline void start(Thread&) {}
inline void access(const void*, size_t, Access, Origin) {}
inline void block_barrier(Block&) {}
inline void sync_warp(Block&, unsigned, unsigned) {}
inline void cluster_arrive(Thread&, Arrival) {}
inline void cluster_complete(Cluster&) {}
inline void cluster_wait(Thread&) {}
inline void fence(Thread&) {}
inline void atomic_read(Thread&, const void*, bool) {}
inline void atomic_write(Thread&, const void*) {}

#endif

}  // namespace races
}  // namespace cuda_emulation
