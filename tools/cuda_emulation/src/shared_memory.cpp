#include "shared_memory.h"

#include <link.h>

#include <cstdlib>
#include <cstring>
#include <tuple>

#include "cuda_emulation/current.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace cuda_emulation {

namespace {

// CUDA promises 16 bytes.  More would hide a kernel that needs more and does not ask for it.
constexpr size_t kAlignment = 16;

struct Range {
  char* begin;
  size_t size;
};

// The calling thread's storage for the thread_local variables of this library or program.
Range thread_local_storage() {
  Range found{};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* result) {
        auto* storage = static_cast<char*>(info->dlpi_tls_data);
        const auto* ours = reinterpret_cast<const char*>(&current);
        for (int i = 0; i < info->dlpi_phnum; i++) {
          const ElfW(Phdr) & segment = info->dlpi_phdr[i];
          if (segment.p_type != PT_TLS || storage == nullptr) continue;
          if (ours < storage || ours >= storage + segment.p_memsz) continue;
          *static_cast<Range*>(result) = {storage, segment.p_memsz};
          return 1;
        }
        return 0;
      },
      &found);
  if (found.begin == nullptr) std::abort();
  return found;
}

using OwnVariables = std::tuple<Current, uint3, uint3, dim3, dim3>;

bool within(const void* address, const char* begin, size_t size) {
  const auto at = reinterpret_cast<uintptr_t>(address), from = reinterpret_cast<uintptr_t>(begin);
  return at >= from && at - from < size;
}

}  // namespace

SharedMemory::SharedMemory(size_t dynamic_bytes) : dynamic_bytes_(dynamic_bytes) {
  const Range storage = thread_local_storage();
  variables_ = storage.begin;
  variable_bytes_ = storage.size;
  // Of exactly this size, for AddressSanitizer, and aligned to no more than kAlignment.
  void* memory = nullptr;
  if (posix_memalign(&memory, 1024, dynamic_bytes + kAlignment) != 0) std::abort();
  allocation_ = static_cast<char*>(memory);
  dynamic_ = allocation_ + kAlignment;
  set_accessible(false);
}

SharedMemory::~SharedMemory() {
  ASAN_UNPOISON_MEMORY_REGION(allocation_, dynamic_bytes_ + kAlignment);
  std::free(allocation_);
}

void SharedMemory::make_uninitialized() {
  // The emulation's own variables lie among the kernels'.
  const OwnVariables saved{current, threadIdx, blockIdx, blockDim, gridDim};
  std::memset(variables_, 0xff, variable_bytes_);
  std::tie(current, threadIdx, blockIdx, blockDim, gridDim) = saved;
  std::memset(dynamic_, 0xff, dynamic_bytes_);
}

void SharedMemory::set_accessible(bool accessible) {
  ASAN_POISON_MEMORY_REGION(allocation_, dynamic_bytes_ + kAlignment);
  if (accessible) ASAN_UNPOISON_MEMORY_REGION(dynamic_, dynamic_bytes_);
}

bool SharedMemory::holds(const void* address) const {
  return within(address, dynamic_, dynamic_bytes_) || within(address, variables_, variable_bytes_);
}

void* SharedMemory::address_in(const void* address, const SharedMemory& other) const {
  // One past the end as well: a pointer may stand there, and be mapped.
  const auto* at = static_cast<const char*>(address);
  if (within(address, dynamic_, dynamic_bytes_ + 1)) return other.dynamic_ + (at - dynamic_);
  if (within(address, variables_, variable_bytes_)) return other.variables_ + (at - variables_);
  return nullptr;
}

}  // namespace cuda_emulation
