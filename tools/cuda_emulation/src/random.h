// Random numbers for schedules: small, fast, and the same everywhere.
#pragma once

#include <cstdint>

namespace cuda_emulation {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint32_t next() {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return static_cast<uint32_t>((z ^ (z >> 31)) >> 32);
  }

  unsigned below(unsigned n) { return static_cast<unsigned>(uint64_t{next()} * n >> 32); }

  bool once_in(unsigned n) { return below(n) == 0; }

 private:
  uint64_t state_;
};

}  // namespace cuda_emulation
