// Clusters, and sets of the blocks that may wait for one another: a cluster, or a cooperative launch's whole grid.
#pragma once

#include <cstdint>
#include <memory>
#include <semaphore>
#include <vector>

#include "block.h"
#include "races.h"

namespace cuda_emulation {

class BlockSet;

struct Cluster {
  BlockSet* block_set;
  std::vector<Block*> blocks;  // by rank
  unsigned threads = 0, exited = 0;
  // The barrier.
  uint64_t phase = 0;  // how often it completed
  unsigned arrived = 0;
  Site first_arrival;
  races::ClusterClock clock;

  void arrive(Thread& thread, Arrival arrival, Site site);
  void wait(Thread& thread, Site site);
  void exit(Thread& thread);
};

class BlockSet {
 public:
  // Number `number` of the launch.
  BlockSet(Launch& launch, uint64_t number);
  BlockSet(const BlockSet&) = delete;
  BlockSet& operator=(const BlockSet&) = delete;

  // Executes block `i`; called at the same time for all of them, on an OS thread each.
  void run(unsigned i, Stacks& stacks, SharedMemory& memory);

  void note_progress() { idle_rounds_ = 0; }

  Launch& launch;
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::unique_ptr<Cluster>> clusters;

 private:
  void run_rounds(unsigned i);
  bool runnable(unsigned i) const;
  unsigned choose_next(unsigned i);  // blocks.size() if none can run
  void hand_over(unsigned i);
  void end_of_waiting(const char* what);

  std::vector<bool> left_;  // blocks that have finished, or were given up after a failure
  std::vector<std::unique_ptr<std::binary_semaphore>> may_run_;  // one block holds its turn; the others wait for theirs
  Random random_;
  uint64_t idle_rounds_ = 0;  // in which threads did nothing but let others run
};

// How many block sets a launch has, and of how many blocks each.
uint64_t count_block_sets(const Launch& launch);
unsigned blocks_per_set(const Launch& launch);

}  // namespace cuda_emulation
