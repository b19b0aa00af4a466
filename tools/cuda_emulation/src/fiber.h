// Flows of control that are switched by hand, and their stacks.
#pragma once

#include <cstddef>
#include <vector>

namespace cuda_emulation {

// Where a suspended flow of control goes on.  Knows its stack, for AddressSanitizer.
struct Context {
  void* stack_pointer = nullptr;
  const void* stack_bottom = nullptr;
  size_t stack_size = 0;
  void* fake_stack = nullptr;
};

// The context of the OS thread that calls.
Context context_of_this_thread();

// A context that runs `entry` when it is first switched to.  `entry` must call enter_context first, and never return.
Context new_context(char* stack, void (*entry)());
void enter_context();

enum class Leaving { kForNow, kForGood };
void switch_context(Context& from, Context& to, Leaving leaving = Leaving::kForNow);

// Bytes of a fiber's stack.
size_t stack_size();

// Stacks of fibers, with a guard page below each.  They come from a pool and go back to it.
class Stacks {
 public:
  Stacks() = default;
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  ~Stacks() { give_back(); }

  char* operator[](size_t i);  // made when first asked for; throws where there is no memory
  void give_back();

 private:
  std::vector<char*> stacks_;
};

}  // namespace cuda_emulation
