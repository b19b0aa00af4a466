// cp.async: copies that a thread has asked for and that complete later.
#pragma once

#include <cstddef>
#include <vector>

#include "cuda_emulation/emulation.h"

namespace cuda_emulation {

class AsyncCopies {
 public:
  struct Copy {
    void* to;
    const void* from;
    unsigned bytes;
    Site site;
  };

  void add(const Copy& copy) { pending_.push_back(copy); }
  void commit();                         // those since the last commit are a group
  void complete_all_but(size_t groups);  // the last `groups` groups may stay pending

 private:
  static void complete(const Copy& copy);

  std::vector<Copy> pending_;
  std::vector<size_t> groups_;  // the number of copies of each, oldest first
  size_t committed_ = 0;        // of pending_
};

}  // namespace cuda_emulation
