#include "settings.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>

namespace cuda_emulation {

namespace {

constexpr uint64_t kMostSeed = std::numeric_limits<uint64_t>::max();
constexpr uint64_t kMostCount = 1 << 20;

uint64_t number(const char* name, uint64_t otherwise, uint64_t least, uint64_t most) {
  const char* word = std::getenv(name);
  if (word == nullptr || *word == '\0') return otherwise;
  const char* end = word + std::strlen(word);
  uint64_t value = 0;
  const auto [stop, error] = std::from_chars(word, end, value);
  if (error == std::errc{} && stop == end && value >= least && value <= most) return value;
  throw std::invalid_argument(std::string(name) + " is '" + word + "'; expected a whole number from " +
                              std::to_string(least) + " to " + std::to_string(most));
}

}  // namespace

Settings read_settings() {
  const uint64_t cores = std::max(1u, std::thread::hardware_concurrency());
  Settings settings{};
  settings.seed = number("CUDA_EMULATION_SEED", 0, 0, kMostSeed);
  settings.workers = static_cast<unsigned>(number("CUDA_EMULATION_WORKERS", cores, 1, kMostCount));
  settings.arch = static_cast<int>(number("CUDA_EMULATION_ARCH", 90, 75, 120));
  settings.multiprocessors = static_cast<int>(number("CUDA_EMULATION_SMS", 132, 1, kMostCount));
  return settings;
}

}  // namespace cuda_emulation
