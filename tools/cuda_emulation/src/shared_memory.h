// The shared memory of the block that an OS thread executes.  Variables declared __shared__ are thread_local: they lie
// in the thread-local storage of the program or library that this code is linked into.  Dynamic shared memory is
// allocated for each launch, so that AddressSanitizer knows where it ends.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cuda_emulation {

class SharedMemory {
 public:
  explicit SharedMemory(size_t dynamic_bytes);  // of the calling OS thread
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory();

  void* dynamic() const { return dynamic_; }

  // Nothing is in shared memory when a block starts: all bits are set, which floats read as NaN.
  void make_uninitialized();

  // Whether the block's dynamic shared memory may be touched: from its start to its end.
  void set_accessible(bool accessible);

  bool holds(const void* address) const;

  // The address in `other` of what is at `address` here; null if that is no shared memory.
  void* address_in(const void* address, const SharedMemory& other) const;

 private:
  char* variables_;  // the thread-local storage
  size_t variable_bytes_;
  char* allocation_;
  char* dynamic_;
  size_t dynamic_bytes_;
};

}  // namespace cuda_emulation
