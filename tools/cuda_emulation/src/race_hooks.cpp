// What GCC and Clang call for every access in code that is compiled with -fsanitize=thread; in the place of libtsan.
#include <cstddef>
#include <cstdint>
#include <string>

#include "block.h"
#include "cuda_emulation/current.h"
#include "races.h"
#include "symbolize.h"

namespace {

using namespace cuda_emulation;
using races::Access;

void note(const void* address, size_t bytes, Access access, const void* code) {
  races::access(address, bytes, access, {code, 0});
}

// Accesses that the compiler takes to be aligned are made by instructions that demand it.
void note_aligned(const void* address, size_t bytes, Access access, const void* code) {
  if (current.thread != nullptr && reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    fail("misaligned access of " + std::to_string(bytes) + " bytes", symbolize(code));
  }
  note(address, bytes, access, code);
}

// A volatile access is what an atomic of no order is.
void note_volatile(const void* address, size_t bytes, Access access, const void* code) {
  note(address, bytes, access, code);
  if (current.thread == nullptr) return;
  if (access == Access::kAtomicRead) races::atomic_read(*current.thread, address, false);
  if (access == Access::kAtomicWrite) races::atomic_write(*current.thread, address);
}

}  // namespace

#define HERE __builtin_return_address(0)

#define HOOKS(size)                                                                                         \
  void __tsan_read##size(void* p) { note_aligned(p, size, Access::kRead, HERE); }                           \
  void __tsan_write##size(void* p) { note_aligned(p, size, Access::kWrite, HERE); }                         \
  void __tsan_unaligned_read##size(void* p) { note(p, size, Access::kRead, HERE); }                         \
  void __tsan_unaligned_write##size(void* p) { note(p, size, Access::kWrite, HERE); }                       \
  void __tsan_volatile_read##size(void* p) { note_volatile(p, size, Access::kAtomicRead, HERE); }           \
  void __tsan_volatile_write##size(void* p) { note_volatile(p, size, Access::kAtomicWrite, HERE); }         \
  void __tsan_unaligned_volatile_read##size(void* p) { note_volatile(p, size, Access::kAtomicRead, HERE); } \
  void __tsan_unaligned_volatile_write##size(void* p) { note_volatile(p, size, Access::kAtomicWrite, HERE); }

// Host code of the same program may use atomics; kernels use the emulation's.
#define ATOMIC_HOOKS(bits, T)                                                                                       \
  T __tsan_atomic##bits##_load(const volatile T* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }           \
  void __tsan_atomic##bits##_store(volatile T* p, T v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }           \
  T __tsan_atomic##bits##_exchange(volatile T* p, T v, int) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_add(volatile T* p, T v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_sub(volatile T* p, T v, int) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); } \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile T* p, T* c, T v, int, int) {                           \
    return __atomic_compare_exchange_n(p, c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                         \
  }                                                                                                                 \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile T* p, T* c, T v, int, int) {                             \
    return __atomic_compare_exchange_n(p, c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                         \
  }

extern "C" {

HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
ATOMIC_HOOKS(8, uint8_t)
ATOMIC_HOOKS(16, uint16_t)
ATOMIC_HOOKS(32, uint32_t)
ATOMIC_HOOKS(64, uint64_t)

void __tsan_read_range(void* p, long n) { note(p, static_cast<size_t>(n), Access::kRead, HERE); }
void __tsan_write_range(void* p, long n) { note(p, static_cast<size_t>(n), Access::kWrite, HERE); }
void __tsan_atomic_thread_fence(int) {}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

}  // extern "C"
