// What kernels call (emulation.h), for the thread that calls it.
#include <cstring>

#include "block.h"
#include "block_set.h"
#include "cuda_emulation/current.h"
#include "cuda_emulation/emulation.h"
#include "races.h"

namespace cuda_emulation {

// --- blocks ---

unsigned block_barrier(bool predicate, Site site) {
  Thread& thread = *current.thread;
  return thread.block->barrier(thread, predicate, site);
}

void* dynamic_shared() { return current.thread->block->memory->dynamic(); }

void yield(Site site) {
  Thread& thread = *current.thread;
  thread.block->suspend(thread, State::kReady, site);
}

// --- warps ---

void run_collective(unsigned mask, Collective kind, void* argument, void (*complete)(void**, unsigned), Site site) {
  Thread& thread = *current.thread;
  thread.block->run_collective(thread, mask, kind, argument, complete, site);
}

void sync_warp(unsigned mask, Site site) { run_collective(mask, Collective::kSync, nullptr, nullptr, site); }

namespace {

template <class F>
void for_each_lane(unsigned lanes, const F& f) {
  for (unsigned l = 0; l < 32; l++) {
    if ((lanes >> l & 1) != 0) f(l);
  }
}

struct ShuffleArgument {
  Shuffle how;
  uint64_t bits, result;
  unsigned operand, width;
  Site site;
};

// The lane that `lane` reads: its own where the other one lies outside its segment of `width` lanes.
unsigned source_of(const ShuffleArgument& shuffle, unsigned lane) {
  const unsigned first = lane & ~(shuffle.width - 1), last = first + shuffle.width - 1;
  switch (shuffle.how) {
    case Shuffle::kIndex:
      return first | (shuffle.operand & (shuffle.width - 1));
    case Shuffle::kUp:
      return lane >= first + shuffle.operand ? lane - shuffle.operand : lane;
    case Shuffle::kDown:
      return shuffle.operand <= last - lane ? lane + shuffle.operand : lane;
    case Shuffle::kXor:
      return (lane ^ shuffle.operand) <= last ? lane ^ shuffle.operand : lane;
  }
  return lane;
}

void complete_shuffle(void** arguments, unsigned lanes) {
  const auto of = [arguments](unsigned l) -> ShuffleArgument& { return *static_cast<ShuffleArgument*>(arguments[l]); };
  for_each_lane(lanes, [&](unsigned l) {
    const unsigned source = source_of(of(l), l);
    if ((lanes >> source & 1) == 0) {
      fail(
          "shuffle: lane " + std::to_string(l) + " reads lane " + std::to_string(source) + ", which does not take part",
          of(l).site);
    }
    of(l).result = of(source).bits;
  });
}

struct VoteArgument {
  uint64_t bits;
  unsigned result;
  unsigned (*combine)(unsigned, unsigned);
};

VoteArgument& vote_of(void** arguments, unsigned l) { return *static_cast<VoteArgument*>(arguments[l]); }

void complete_ballot(void** arguments, unsigned lanes) {
  unsigned result = 0;
  for_each_lane(lanes, [&](unsigned l) { result |= static_cast<unsigned>(vote_of(arguments, l).bits) << l; });
  for_each_lane(lanes, [&](unsigned l) { vote_of(arguments, l).result = result; });
}

void complete_match(void** arguments, unsigned lanes) {
  for_each_lane(lanes, [&](unsigned l) {
    unsigned equal = 0;
    for_each_lane(lanes, [&](unsigned other) {
      equal |= unsigned{vote_of(arguments, l).bits == vote_of(arguments, other).bits} << other;
    });
    vote_of(arguments, l).result = equal;
  });
}

void complete_reduction(void** arguments, unsigned lanes) {
  bool first = true;
  unsigned result = 0;
  for_each_lane(lanes, [&](unsigned l) {
    const VoteArgument& vote = vote_of(arguments, l);
    const auto value = static_cast<unsigned>(vote.bits);
    result = first ? value : vote.combine(result, value);
    first = false;
  });
  for_each_lane(lanes, [&](unsigned l) { vote_of(arguments, l).result = result; });
}

}  // namespace

uint64_t shuffle(unsigned mask, Shuffle how, uint64_t bits, unsigned operand, unsigned width, Site site) {
  if (width == 0 || width > 32 || (width & (width - 1)) != 0) fail("shuffle: the width is no power of two", site);
  ShuffleArgument argument{how, bits, 0, operand, width, site};
  run_collective(mask, Collective::kShuffle, &argument, complete_shuffle, site);
  return argument.result;
}

unsigned ballot(unsigned mask, bool predicate, Site site) {
  VoteArgument argument{predicate, 0, nullptr};
  run_collective(mask, Collective::kVote, &argument, complete_ballot, site);
  return argument.result;
}

unsigned match_any(unsigned mask, uint64_t bits, Site site) {
  VoteArgument argument{bits, 0, nullptr};
  run_collective(mask, Collective::kMatch, &argument, complete_match, site);
  return argument.result;
}

unsigned reduce(unsigned mask, unsigned value, unsigned (*combine)(unsigned, unsigned), Site site) {
  VoteArgument argument{value, 0, combine};
  run_collective(mask, Collective::kReduce, &argument, complete_reduction, site);
  return argument.result;
}

// --- clusters ---

namespace {

Cluster& cluster_of(const Thread& thread, Site site) {
  if (thread.block->launch.settings.arch < 90) fail("clusters need compute capability 9.0", site);
  return thread.block->cluster;
}

}  // namespace

int cluster_rank(Site site) {
  cluster_of(*current.thread, site);
  return static_cast<int>(current.thread->block->rank);
}

int cluster_size(Site site) { return static_cast<int>(cluster_of(*current.thread, site).blocks.size()); }

void cluster_arrive(Site site) { cluster_of(*current.thread, site).arrive(*current.thread, Arrival::kRelease, site); }

void cluster_arrive_relaxed(Site site) {
  cluster_of(*current.thread, site).arrive(*current.thread, Arrival::kRelaxed, site);
}

void cluster_wait(Site site) { cluster_of(*current.thread, site).wait(*current.thread, site); }

void* map_shared_rank(const void* own, unsigned rank, Site site) {
  const Cluster& cluster = cluster_of(*current.thread, site);
  if (rank >= cluster.blocks.size()) fail("no block " + std::to_string(rank) + " in this cluster", site);
  const Block& peer = *cluster.blocks[rank];
  if (peer.memory == nullptr) {
    fail("block " + std::to_string(rank) + " of the cluster need not have started: a cluster barrier is missing", site);
  }
  if (peer.exited) fail("block " + std::to_string(rank) + " of the cluster has exited, and its shared memory", site);
  void* address = current.thread->block->memory->address_in(own, *peer.memory);
  if (address == nullptr) fail("only shared memory has a counterpart in another block", site);
  return address;
}

// --- memory ---

void fence() { races::fence(*current.thread); }

namespace {

// Lets other threads run now and then, so that schedules differ and a loop of atomics does not wait for ever.
void interleave(Thread& thread, Site site) {
  Block& block = *thread.block;
  constexpr unsigned kMostBusySteps = 256;
  const bool random = block.launch.settings.seed != 0 && block.random.once_in(16);
  if (random || ++thread.busy_steps > kMostBusySteps) yield(site);
}

uint64_t load(const void* address, size_t size) {
  switch (size) {
    case 2:
      return __atomic_load_n(static_cast<const uint16_t*>(address), __ATOMIC_SEQ_CST);
    case 4:
      return __atomic_load_n(static_cast<const uint32_t*>(address), __ATOMIC_SEQ_CST);
    default:
      return __atomic_load_n(static_cast<const uint64_t*>(address), __ATOMIC_SEQ_CST);
  }
}

template <class T>
bool exchange(void* address, uint64_t expected, uint64_t desired) {
  auto before = static_cast<T>(expected);
  return __atomic_compare_exchange_n(static_cast<T*>(address), &before, static_cast<T>(desired), false,
                                     __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

}  // namespace

uint64_t load_relaxed(const void* address, size_t size, Site site) {
  check_aligned(address, size, site);
  Thread& thread = *current.thread;
  interleave(thread, site);
  races::access(address, size, races::Access::kAtomicRead, races::origin(site));
  races::atomic_read(thread, address, false);
  return load(address, size);
}

uint64_t load_acquire(const void* address, size_t size, Site site) {
  check_aligned(address, size, site);
  yield(site);
  races::access(address, size, races::Access::kAtomicRead, races::origin(site));
  races::atomic_read(*current.thread, address, true);
  return load(address, size);
}

bool compare_exchange(void* address, size_t size, uint64_t expected, uint64_t desired, Site site) {
  Thread& thread = *current.thread;
  const bool done = size == 2   ? exchange<uint16_t>(address, expected, desired)
                    : size == 4 ? exchange<uint32_t>(address, expected, desired)
                                : exchange<uint64_t>(address, expected, desired);
  if (!done) return false;
  races::access(address, size, races::Access::kAtomicWrite, races::origin(site));
  races::atomic_write(thread, address);
  return true;
}

void check_aligned(const void* address, size_t alignment, Site site) {
  if (reinterpret_cast<uintptr_t>(address) % alignment != 0) {
    fail("misaligned address: not a multiple of " + std::to_string(alignment), site);
  }
}

}  // namespace cuda_emulation
