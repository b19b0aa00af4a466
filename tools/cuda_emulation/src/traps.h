// Instructions of a kernel that the host's processor refuses: they end the launch, and not the process.
#pragma once

#include <csignal>

namespace cuda_emulation {

// In force as long as it lives.  AddressSanitizer's own reports of invalid addresses are better, and are left alone.
class Traps {
 public:
  Traps();
  Traps(const Traps&) = delete;
  Traps& operator=(const Traps&) = delete;
  ~Traps();

 private:
  struct sigaction before_[3];
};

}  // namespace cuda_emulation
