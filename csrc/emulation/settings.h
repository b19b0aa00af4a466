// What the environment chooses (emulation.h).
#pragma once

#include <cstdint>

namespace visionzip::emulation {

struct Settings {
  uint64_t seed;
  unsigned workers;
  int arch, multiprocessors;
};

Settings read_settings();

}  // namespace visionzip::emulation
