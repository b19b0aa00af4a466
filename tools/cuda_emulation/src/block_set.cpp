#include "block_set.h"

#include <algorithm>
#include <string>
#include <system_error>

namespace cuda_emulation {

uint64_t count_block_sets(const Launch& launch) {
  return launch.cooperative ? 1 : launch.blocks() / launch.blocks_per_cluster();
}

unsigned blocks_per_set(const Launch& launch) {
  return launch.cooperative ? static_cast<unsigned>(launch.blocks()) : launch.blocks_per_cluster();
}

// --- the cluster's barrier ---

void Cluster::arrive(Thread& thread, Arrival arrival, Site site) {
  if (thread.cluster_arrived) {
    fail("cluster barrier: a second arrival without a wait; the first was at " + text_of(thread.cluster_arrival), site);
  }
  if (exited > 0) {
    fail("cluster barrier: " + std::to_string(exited) + " threads of the cluster have left the kernel", site);
  }
  if (arrived == 0) first_arrival = site;
  thread.cluster_arrived = true;
  thread.cluster_arrival = site;
  thread.cluster_phase = phase + 1;
  races::cluster_arrive(thread, arrival);
  if (++arrived < threads) return;
  arrived = 0;
  phase++;
  races::cluster_complete(*this);
  for (Block* block : blocks) {
    for (Thread& other : block->threads) {
      if (other.state == State::kAtClusterBarrier) other.state = State::kReady;
    }
  }
  block_set->note_progress();
}

void Cluster::wait(Thread& thread, Site site) {
  if (!thread.cluster_arrived) fail("cluster barrier: a wait without an arrival", site);
  while (phase < thread.cluster_phase) thread.block->suspend(thread, State::kAtClusterBarrier, site);
  thread.cluster_arrived = false;
  races::cluster_wait(thread);
}

void Cluster::exit(Thread& thread) {
  if (thread.cluster_arrived) {
    fail("cluster barrier: a thread leaves the kernel after an arrival without a wait", thread.cluster_arrival);
  }
  if (arrived > 0) {
    fail("a thread leaves the kernel while others of its cluster arrived at the barrier", first_arrival);
  }
  exited++;
}

// --- block sets ---

namespace {

// Seeds of different blocks and block sets must differ, and depend on nothing but their numbers.
uint64_t seed_of(const Launch& launch, uint64_t number) {
  return Random(launch.settings.seed * 0x100000001b3u + number).next();
}

uint3 index_in(dim3 extent, uint64_t i) {
  return {static_cast<unsigned>(i % extent.x), static_cast<unsigned>(i / extent.x % extent.y),
          static_cast<unsigned>(i / (uint64_t{extent.x} * extent.y))};
}

}  // namespace

BlockSet::BlockSet(Launch& launch, uint64_t number) : launch(launch), random_(seed_of(launch, number)) {
  const dim3 cluster = launch.cluster;
  const dim3 clusters_in_grid(launch.grid.x / cluster.x, launch.grid.y / cluster.y, launch.grid.z / cluster.z);
  const unsigned per_cluster = launch.blocks_per_cluster(), count = blocks_per_set(launch) / per_cluster;
  for (unsigned c = 0; c < count; c++) {
    clusters.push_back(std::make_unique<Cluster>());
    clusters.back()->block_set = this;
    const uint3 at = index_in(clusters_in_grid, number * count + c);
    for (unsigned rank = 0; rank < per_cluster; rank++) {
      const uint3 inner = index_in(cluster, rank);
      const uint3 index{at.x * cluster.x + inner.x, at.y * cluster.y + inner.y, at.z * cluster.z + inner.z};
      const auto i = static_cast<unsigned>(blocks.size());
      blocks.push_back(std::make_unique<Block>(launch, *clusters.back(), rank, index,
                                               seed_of(launch, number * 0x10001 + i + 1),
                                               i * launch.threads_per_block()));
      clusters.back()->blocks.push_back(blocks.back().get());
      clusters.back()->threads += launch.threads_per_block();
    }
  }
  left_.resize(blocks.size());
  const unsigned first = launch.settings.seed == 0 ? 0 : random_.below(static_cast<unsigned>(blocks.size()));
  for (unsigned i = 0; i < blocks.size(); i++) may_run_.push_back(std::make_unique<std::binary_semaphore>(i == first));
  races::begin_block_set(*this);
}

void BlockSet::run(unsigned i, Stacks& stacks, SharedMemory& memory) {
  may_run_[i]->acquire();
  if (!launch.failed()) {
    try {
      blocks[i]->start(stacks, memory);
      run_rounds(i);
    } catch (const std::system_error& error) {
      launch.fail(error.what());
    }
  }
  blocks[i]->finish();
  stacks.give_back();
  left_[i] = true;
  unsigned next = choose_next(i);
  if (next == blocks.size()) {
    // Either all are done, or those that are not wait for what never comes; then they are woken to end.
    next = static_cast<unsigned>(std::find(left_.begin(), left_.end(), false) - left_.begin());
    if (next < blocks.size()) end_of_waiting("deadlock: no thread can go on");
  }
  if (next < blocks.size()) may_run_[next]->release();
}

void BlockSet::run_rounds(unsigned i) {
  constexpr uint64_t kMostIdleRounds = 100000;
  while (!launch.failed()) {
    const uint64_t before = ++idle_rounds_;
    blocks[i]->run_round();
    if (blocks[i]->is_finished() || launch.failed()) return;
    if (idle_rounds_ > kMostIdleRounds) {
      return end_of_waiting(
          "livelock: threads wait in a loop for what does not come (from another block?  "
          "Only those of a cluster or of a cooperative launch run together)");
    }
    const bool progress = idle_rounds_ < before;
    const bool leave = launch.settings.seed == 0 ? !progress : random_.once_in(progress ? 4 : 2);
    if (leave || !blocks[i]->has_ready()) hand_over(i);
  }
}

bool BlockSet::runnable(unsigned i) const {
  return !left_[i] && (blocks[i]->memory == nullptr || blocks[i]->has_ready());
}

unsigned BlockSet::choose_next(unsigned i) {
  const auto count = static_cast<unsigned>(blocks.size());
  const unsigned skip = launch.settings.seed == 0 || count == 1 ? 0 : random_.below(count - 1);
  for (unsigned step = 0; step < count; step++) {
    const unsigned next = (i + 1 + skip + step) % count;
    if (runnable(next)) return next;
  }
  return count;
}

void BlockSet::hand_over(unsigned i) {
  const unsigned next = choose_next(i);
  if (next == i) return;
  if (next == blocks.size()) return end_of_waiting("deadlock: no thread can go on");
  may_run_[next]->release();
  may_run_[i]->acquire();
}

void BlockSet::end_of_waiting(const char* what) {
  std::string text = what;
  constexpr unsigned kMostBlocks = 8;
  unsigned listed = 0;
  for (unsigned i = 0; i < blocks.size() && listed < kMostBlocks; i++) {
    if (left_[i] || blocks[i]->memory == nullptr) continue;
    listed++;
    text += blocks[i]->waiting_threads();
  }
  launch.fail(text);
}

}  // namespace cuda_emulation
