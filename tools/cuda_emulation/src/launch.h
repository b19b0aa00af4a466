// A launch: what is executed, and how it went.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <functional>
#include <mutex>
#include <string>

#include "settings.h"

namespace cuda_emulation {

struct Launch {
  dim3 grid, block, cluster;
  size_t dynamic_shared;
  bool cooperative;
  std::function<void()> kernel;
  Settings settings;

  unsigned threads_per_block() const { return block.x * block.y * block.z; }
  unsigned blocks_per_cluster() const { return cluster.x * cluster.y * cluster.z; }
  uint64_t blocks() const { return uint64_t{grid.x} * grid.y * grid.z; }

  // The first diagnosis ends the launch; later ones are consequences.
  void fail(const std::string& diagnosis);
  bool failed() const { return failed_.load(std::memory_order_relaxed); }
  const std::string& diagnosis() const { return diagnosis_; }

 private:
  std::atomic<bool> failed_ = false;
  std::mutex mutex_;
  std::string diagnosis_;
};

// Executes it; true if no rule was broken.
bool execute(Launch& launch);

}  // namespace cuda_emulation
