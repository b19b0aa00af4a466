#include "launch.h"

#include <algorithm>
#include <barrier>
#include <optional>
#include <thread>
#include <vector>

#include "group.h"
#include "traps.h"

namespace cuda_emulation {

void Launch::fail(const std::string& diagnosis) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!failed_) diagnosis_ = diagnosis;
  failed_ = true;
}

namespace {

// OS threads that execute group after group together, one block each.
class Gang {
 public:
  Gang(Launch& launch, std::atomic<uint64_t>& next)
      : launch_(launch), next_(next), size_(blocks_per_group(launch)), meet_(static_cast<std::ptrdiff_t>(size_)) {}

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
      if (i == 0) take_group();
      meet_.arrive_and_wait();
      if (!group_) return;
      group_->run(i, stacks, memory);
      // Shared memory must outlive the group: a block that reads that of one which has exited must be found out.
      meet_.arrive_and_wait();
    }
  }

  void take_group() {
    if (group_) races::end_group(launch_);
    group_.reset();
    const uint64_t count = groups_of(launch_), i = next_++;
    if (i >= count || launch_.failed()) return;
    // Groups start in any order, so no kernel may rely on one.
    group_.emplace(launch_, launch_.settings.seed % 2 == 0 ? i : count - 1 - i);
  }

  Launch& launch_;
  std::atomic<uint64_t>& next_;
  const unsigned size_;
  std::barrier<> meet_;
  std::optional<Group> group_;
  std::vector<std::thread> threads_;
};

}  // namespace

bool execute(Launch& launch) {
  static std::mutex one_at_a_time;  // as on one stream
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  const Traps traps;
  races::begin_launch(launch);
  // Of a group one block runs at a time, so groups are what cores are for; but the race checker keeps one history of
  // all memory.
  const uint64_t count = groups_of(launch), workers = races::kBuiltIn ? 1 : launch.settings.workers;
  std::atomic<uint64_t> next = 0;
  std::vector<std::unique_ptr<Gang>> gangs;
  for (uint64_t i = 0; i < std::min(count, workers); i++) {
    gangs.push_back(std::make_unique<Gang>(launch, next));
  }
  for (auto& gang : gangs) gang->start();
  for (auto& gang : gangs) gang->join();
  return !launch.failed();
}

}  // namespace cuda_emulation
