#include "device.h"

#include <algorithm>
#include <iterator>

namespace cuda_emulation {

namespace {

constexpr size_t kib(size_t n) { return n << 10; }

// CUDA C++ Programming Guide, technical specifications per compute capability.
constexpr Device::Limits kLimits[] = {
    {75, 1024, 16, kib(64), kib(64)},    {80, 2048, 32, kib(164), kib(163)}, {86, 1536, 16, kib(100), kib(99)},
    {87, 1536, 16, kib(164), kib(163)},  {89, 1536, 24, kib(100), kib(99)},  {90, 2048, 32, kib(228), kib(227)},
    {100, 2048, 32, kib(228), kib(227)}, {120, 1536, 24, kib(100), kib(99)},
};

const Device::Limits& limits_of(int arch) {
  const Device::Limits* found = std::begin(kLimits);
  for (const Device::Limits& limits : kLimits) {
    if (limits.arch <= arch) found = &limits;
  }
  return *found;
}

}  // namespace

Device::Device(const Settings& settings)
    : arch_(settings.arch), multiprocessors_(settings.multiprocessors), limits_(&limits_of(settings.arch)) {}

int Device::blocks_per_multiprocessor(int threads, size_t dynamic_shared) const {
  if (dynamic_shared > limits_->shared_of_block) return 0;
  const int warps = (threads + 31) / 32;
  const auto by_shared = static_cast<int>(limits_->shared / (dynamic_shared + kSharedOfSystem));
  return std::min({limits_->blocks, limits_->threads / 32 / warps, by_shared});
}

bool Device::attribute(cudaDeviceAttr attribute, int& value) const {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      value = arch_ / 10;
      return true;
    case cudaDevAttrComputeCapabilityMinor:
      value = arch_ % 10;
      return true;
    case cudaDevAttrMultiProcessorCount:
      value = multiprocessors_;
      return true;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      value = static_cast<int>(limits_->shared_of_block);
      return true;
    default:
      return false;
  }
}

}  // namespace cuda_emulation
