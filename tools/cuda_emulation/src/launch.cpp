#include "launch.h"

#include <algorithm>
#include <barrier>
#include <optional>
#include <thread>
#include <vector>

#include "block_set.h"
#include "traps.h"

namespace cuda_emulation {

void Launch::fail(const std::string& diagnosis) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!failed_) diagnosis_ = diagnosis;
  failed_ = true;
}

namespace {

// OS threads, as many as a block set has blocks, that execute one set after another.
class Workers {
 public:
  Workers(Launch& launch, std::atomic<uint64_t>& next_set)
      : launch_(launch),
        next_set_(next_set),
        size_(blocks_per_set(launch)),
        together_(static_cast<std::ptrdiff_t>(size_)) {}

  void start() {
    for (unsigned i = 0; i < size_; i++) threads_.emplace_back([this, i] { work(i); });
  }

  void join() {
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  void work(unsigned i) {
    Stacks stacks;
    SharedMemory memory(launch_.dynamic_shared);
    for (;;) {
      if (i == 0) take_block_set();
      together_.arrive_and_wait();
      if (!block_set_) return;
      block_set_->run(i, stacks, memory);
      // Shared memory must outlive the block set: a block that reads that of one which has exited must be found out.
      together_.arrive_and_wait();
    }
  }

  void take_block_set() {
    if (block_set_) races::end_block_set(launch_);
    block_set_.reset();
    const uint64_t count = count_block_sets(launch_), i = next_set_++;
    if (i >= count || launch_.failed()) return;
    // Block sets start in any order, so no kernel may rely on one.
    block_set_.emplace(launch_, launch_.settings.seed % 2 == 0 ? i : count - 1 - i);
  }

  Launch& launch_;
  std::atomic<uint64_t>& next_set_;
  const unsigned size_;
  std::barrier<> together_;
  std::optional<BlockSet> block_set_;
  std::vector<std::thread> threads_;
};

}  // namespace

bool execute(Launch& launch) {
  static std::mutex one_at_a_time;  // as on one stream
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  const Traps traps;
  races::begin_launch(launch);
  // Of a set one block runs at a time, so sets are what cores are for; but the race checker keeps one history of all
  // memory.
  const uint64_t at_a_time = races::kBuiltIn ? 1 : launch.settings.workers;
  std::atomic<uint64_t> next_set = 0;
  std::vector<std::unique_ptr<Workers>> all;
  for (uint64_t i = 0; i < std::min(count_block_sets(launch), at_a_time); i++) {
    all.push_back(std::make_unique<Workers>(launch, next_set));
  }
  for (auto& workers : all) workers->start();
  for (auto& workers : all) workers->join();
  return !launch.failed();
}

}  // namespace cuda_emulation
