#include "fiber.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <mutex>
#include <system_error>

#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define EMULATION_ASAN
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define EMULATION_ASAN
#endif
#ifdef EMULATION_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef __x86_64__
#error "The emulation switches its fibers in x86-64 assembly"
#endif

// void emulation_switch(void** from, void* to): keeps the registers that a call must keep, on the stack that is left.
// The names are local to the library, as more than one may be loaded.
extern "C" __attribute__((visibility("hidden"))) void emulation_switch(void** from, void* to);
asm(R"(
.text
.globl emulation_switch
.hidden emulation_switch
.type emulation_switch, @function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch, .-emulation_switch
)");

namespace cuda_emulation {

namespace {

constexpr size_t kGuard = 4096;
constexpr size_t kSavedRegisters = 6;

// Stacks of earlier launches, for the next.
std::mutex pool_mutex;
std::vector<char*>& pool() {
  static auto* stacks = new std::vector<char*>;  // never destroyed: launches may outlive static objects
  return *stacks;
}

char* new_stack() {
  const size_t bytes = stack_size() + kGuard;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "emulation: a fiber's stack");
  mprotect(memory, kGuard, PROT_NONE);
  return static_cast<char*>(memory) + kGuard;
}

}  // namespace

size_t stack_size() {
#ifdef EMULATION_ASAN
  return size_t{256} << 10;  // redzones
#else
  return size_t{128} << 10;
#endif
}

Context context_of_this_thread() {
  pthread_attr_t attributes;
  void* bottom = nullptr;
  size_t size = 0;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &bottom, &size);
  pthread_attr_destroy(&attributes);
  Context context;
  context.stack_bottom = bottom;
  context.stack_size = size;
  return context;
}

Context new_context(char* stack, void (*entry)()) {
#ifdef EMULATION_ASAN
  __asan_unpoison_memory_region(stack, stack_size());  // frames of a fiber that was left for good
#endif
  // From the top: two unused words, for the alignment of a stack just after a call; a null return address, which ends
  // backtraces; the address that the first
  // switch returns to; the registers that it restores.
  auto** top = reinterpret_cast<void**>(stack + stack_size()) - 3;
  top[0] = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  top -= kSavedRegisters;
  std::memset(top, 0, kSavedRegisters * sizeof(void*));
  Context context;
  context.stack_pointer = top;
  context.stack_bottom = stack;
  context.stack_size = stack_size();
  return context;
}

void enter_context() {
#ifdef EMULATION_ASAN
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

void switch_context(Context& from, Context& to, [[maybe_unused]] Leaving leaving) {
#ifdef EMULATION_ASAN
  void** const kept = leaving == Leaving::kForGood ? nullptr : &from.fake_stack;
  __sanitizer_start_switch_fiber(kept, to.stack_bottom, to.stack_size);
#endif
  emulation_switch(&from.stack_pointer, to.stack_pointer);
#ifdef EMULATION_ASAN
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

char* Stacks::operator[](size_t i) {
  while (stacks_.size() <= i) {
    const std::lock_guard<std::mutex> lock(pool_mutex);
    if (pool().empty()) {
      stacks_.push_back(new_stack());
    } else {
      stacks_.push_back(pool().back());
      pool().pop_back();
    }
  }
  return stacks_[i];
}

void Stacks::give_back() {
  const std::lock_guard<std::mutex> lock(pool_mutex);
  pool().insert(pool().end(), stacks_.begin(), stacks_.end());
  stacks_.clear();
}

}  // namespace cuda_emulation
