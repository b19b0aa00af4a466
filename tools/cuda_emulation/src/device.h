// The device that is emulated: the limits of a GPU of the chosen compute capability.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "settings.h"

namespace cuda_emulation {

constexpr size_t kSharedWithoutAsking = 48 << 10;  // of a block; more needs a function attribute
constexpr size_t kSharedOfSystem = 1 << 10;        // which every block costs beside its own

class Device {
 public:
  struct Limits {
    int arch;
    int threads, blocks;             // of a multiprocessor
    size_t shared, shared_of_block;  // bytes
  };

  explicit Device(const Settings& settings);

  int arch() const { return arch_; }
  int multiprocessors() const { return multiprocessors_; }
  const Limits& limits() const { return *limits_; }
  bool has_clusters() const { return arch_ >= 90; }

  // How many blocks fit; registers, which are not known here, might allow fewer.
  int blocks_per_multiprocessor(int threads, size_t dynamic_shared) const;

  bool attribute(cudaDeviceAttr attribute, int& value) const;  // false: not one that the emulation knows

 private:
  int arch_, multiprocessors_;
  const Limits* limits_;
};

}  // namespace cuda_emulation
