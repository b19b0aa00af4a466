// What the environment chooses (emulation.h).
#pragma once

#include <cstdint>

namespace cuda_emulation {

struct Settings {
  uint64_t seed;
  unsigned workers;
  int arch, multiprocessors;
};

Settings read_settings();

}  // namespace cuda_emulation
