#include "settings.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <thread>

namespace cuda_emulation {

namespace {

uint64_t number(const char* name, uint64_t otherwise) {
  const char* word = std::getenv((std::string("CUDA_EMULATION_") + name).c_str());
  return word != nullptr && *word != '\0' ? std::strtoull(word, nullptr, 10) : otherwise;
}

}  // namespace

Settings read_settings() {
  Settings settings{};
  settings.seed = number("SEED", 0);
  settings.workers = static_cast<unsigned>(number("WORKERS", std::max(1u, std::thread::hardware_concurrency())));
  settings.arch = static_cast<int>(number("ARCH", 90));
  settings.multiprocessors = static_cast<int>(number("SMS", 132));
  return settings;
}

}  // namespace cuda_emulation
