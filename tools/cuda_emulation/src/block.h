// A thread block: its threads as fibers, and what they wait for.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "async_copies.h"
#include "cuda_emulation/emulation.h"
#include "fiber.h"
#include "launch.h"
#include "races.h"
#include "random.h"
#include "shared_memory.h"

namespace cuda_emulation {

class Block;
struct Cluster;

enum class State : uint8_t { kReady, kAtBlockBarrier, kAtCollective, kAtClusterBarrier, kExited };

struct Thread {
  Block* block;
  unsigned number;  // in its block
  uint3 index;
  State state;
  Context context;
  Site site;             // of the call that it waits in
  unsigned mask;         // of the collective that it waits in
  unsigned busy_steps;   // atomic accesses since it last let others run
  bool cluster_arrived;  // and did not wait yet
  Site cluster_arrival;
  uint64_t cluster_phase;  // that it waits for
  AsyncCopies copies;
  races::ThreadClock clock;

  unsigned warp() const { return number / 32; }
  unsigned lane() const { return number % 32; }
};

// What lanes of a warp do together: those that wait for one another must wait for the same.
enum class Collective : uint8_t { kSync, kShuffle, kVote, kMatch, kReduce, kMatrix };

// Lanes of a warp that wait for one another.
struct PendingCollective {
  unsigned mask, arrived;
  Collective kind;
  Site site;
  std::array<void*, 32> arguments;
};

struct Warp {
  unsigned lanes, live;  // a block's last warp may have fewer than 32 lanes; live: those that have not exited
  std::vector<PendingCollective> collectives;
};

class Block {
 public:
  Block(Launch& launch, Cluster& cluster, unsigned rank, uint3 index, uint64_t seed, unsigned first_clock);

  // On the block's own OS thread.
  void start(Stacks& stacks, SharedMemory& memory);
  void run_round();  // every ready thread once, in the order of the schedule
  void finish();

  bool is_finished() const { return live_ == 0; }
  bool has_ready() const;

  // What threads do.  Each may end the launch.
  unsigned barrier(Thread& thread, bool predicate, Site site);  // of how many the predicate was true
  void run_collective(Thread& thread, unsigned mask, Collective kind, void* argument,
                      void (*complete)(void** arguments, unsigned lanes), Site site);
  void exit(Thread& thread);
  void suspend(Thread& thread, State state, Site site);

  // What they wait for, for a diagnosis of a deadlock.
  std::string waiting_threads() const;

  Launch& launch;
  Cluster& cluster;
  const unsigned rank;  // in the cluster
  const uint3 index;
  const unsigned first_clock;  // the race checker's number of thread 0
  std::vector<Thread> threads;
  SharedMemory* memory = nullptr;  // null until the block starts
  bool exited = false;
  Random random;

 private:
  void resume(Thread& thread);

  std::vector<Warp> warps_;
  std::vector<unsigned> order_;
  unsigned live_;
  Context scheduler_;
  struct {
    unsigned arrived = 0, true_count = 0;
    Site site;
    unsigned result = 0;
  } barrier_;
};

// "block (0, 1, 0), thread (3, 0, 0)"
std::string name_of(const Thread& thread);
std::string text_of(const Site& site);

// For the calling thread.  Returns once all lanes of `mask` have called it.  The last to come runs `complete` for all
// of them: arguments[lane] is what that lane passed.
void run_collective(unsigned mask, Collective kind, void* argument, void (*complete)(void** arguments, unsigned lanes),
                    Site site);

// Ends the launch that the calling thread belongs to.
[[noreturn]] void fail(const std::string& what, Site site);
[[noreturn]] void fail(const std::string& what, const std::string& place);

}  // namespace cuda_emulation
