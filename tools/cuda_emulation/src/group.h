// Clusters, and groups: the blocks that may wait for one another, one cluster or a cooperative launch's whole grid.
#pragma once

#include <cstdint>
#include <memory>
#include <semaphore>
#include <vector>

#include "block.h"
#include "races.h"

namespace cuda_emulation {

class Group;

struct Cluster {
  Group* group;
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

class Group {
 public:
  // Group number `number` of the launch.
  Group(Launch& launch, uint64_t number);
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  // Executes block `i`; called at the same time for all of them, on an OS thread each.
  void run(unsigned i, Stacks& stacks, SharedMemory& memory);

  void note_progress() { fruitless_rounds_ = 0; }

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
  std::vector<std::unique_ptr<std::binary_semaphore>> turns_;  // one block holds its turn; the others wait for theirs
  Random random_;
  uint64_t fruitless_rounds_ = 0;  // in which threads did nothing but let others run
};

// How many groups a launch has, and of how many blocks each.
uint64_t groups_of(const Launch& launch);
unsigned blocks_per_group(const Launch& launch);

}  // namespace cuda_emulation
