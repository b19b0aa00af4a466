// What the environment chooses (README.md).
#pragma once

#include <cstdint>

namespace cuda_emulation {

struct Settings {
  uint64_t seed;
  unsigned workers;
  int arch, multiprocessors;
};

Settings read_settings();  // throws std::invalid_argument where a variable has a value that it cannot have

}  // namespace cuda_emulation
