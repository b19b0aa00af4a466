// Loaded before bochscpu-python, whose symbols these take the place of or add to.
#include <dlfcn.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <string>

#define EXPORTED extern "C" __attribute__((visibility("default")))

class BX_CPU_C;
class bx_cpuid_t;

// bochscpu-python 0.4.0 emulates Cannon Lake, which has no bfloat16 instructions, and offers no choice.  Bochs has
// more: the one that is named here, by __main__.py.
EXPORTED char x86_emulation_model[32];
char x86_emulation_model[32];

__attribute__((visibility("default"))) bx_cpuid_t* create_corei3_cnl_cpuid(BX_CPU_C* cpu) {
  const std::string function = "create_" + std::string(x86_emulation_model) + "_cpuid";
  const std::string symbol = "_Z" + std::to_string(function.size()) + function + "P8BX_CPU_C";
  return reinterpret_cast<bx_cpuid_t* (*)(BX_CPU_C*)>(dlsym(RTLD_DEFAULT, symbol.c_str()))(cpu);
}

// Its wheel calls these by names that the C library has from 2.38 on.
#if !__GLIBC_PREREQ(2, 38)
EXPORTED unsigned long long __isoc23_strtoull(const char* text, char** end, int base) {
  return std::strtoull(text, end, base);
}

EXPORTED int __isoc23_sscanf(const char* text, const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  const int read = std::vsscanf(text, format, arguments);
  va_end(arguments);
  return read;
}
#endif
