// What threads know to have happened before: vector clocks, of which all threads of a block share the bulk.
//
// Every thread has a clock of its own, which advances whenever it tells others what it did.  An access is known by the
// thread that made it and the time on that thread's clock, and has happened before what another thread does if that one
// knows of that time.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

namespace cuda_emulation::races {

using Time = uint32_t;

// Times of all threads of a block set; never changed once it is shared.
struct Times {
  uint64_t id;
  std::vector<Time> of_thread;
  std::vector<uint64_t> merged;  // the ids of those that it was made from
};
using SharedTimes = std::shared_ptr<const Times>;  // null: nothing is known

struct Knowledge {
  SharedTimes of_block;            // what all threads of the block know, from its last barrier
  SharedTimes acquired;            // and beyond that, from cluster barriers and atomics
  std::array<Time, 32> of_warp{};  // and from __syncwarp
  unsigned thread = 0, first_of_warp = 0;
  Time now = 1;

  bool includes(unsigned other, Time time) const {
    if (other == thread) return true;
    if (other - first_of_warp < 32 && time <= of_warp[other - first_of_warp]) return true;
    return (of_block && time <= of_block->of_thread[other]) || (acquired && time <= acquired->of_thread[other]);
  }
};

struct ThreadClock {
  Knowledge knowledge;
  SharedTimes read_by_atomics;  // known from the next fence on
  std::unique_ptr<Knowledge> at_last_fence;
};

// Unites what several threads know.
class Union {
 public:
  explicit Union(unsigned threads) : times_(threads) {}

  void add(const SharedTimes& times);
  void add(const Knowledge& knowledge);
  SharedTimes share();

 private:
  std::vector<Time> times_;
  std::vector<uint64_t> merged_;
};

SharedTimes unite(const SharedTimes& a, const SharedTimes& b);

struct ClusterClock {
  std::unique_ptr<Union> arriving;
  SharedTimes completed;  // what was known at the last completed barrier
};

}  // namespace cuda_emulation::races
