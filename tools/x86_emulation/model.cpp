// bochscpu emulates Tiger Lake, which has no bfloat16 instructions, and offers no choice.  Loaded before it, this answers in
// that model's place with Sapphire Rapids, which has them.
#include <dlfcn.h>

class BX_CPU_C;
class bx_cpuid_t;

__attribute__((visibility("default"))) bx_cpuid_t* create_tigerlake_cpuid(BX_CPU_C* cpu) {
  using Create = bx_cpuid_t* (*)(BX_CPU_C*);
  const auto create = reinterpret_cast<Create>(dlsym(RTLD_DEFAULT, "_Z28create_sapphire_rapids_cpuidP8BX_CPU_C"));
  return create(cpu);
}
