// Chooses the instruction set at run time: one binary serves every CPU.
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef __x86_64__
#include <cpuid.h>
#endif

#include "cpu/kernels/kernels.h"

namespace visionzip::cpu {

// cmake/CpuKernels.cmake compiles them.
#ifdef __aarch64__
namespace neon {
extern const Kernels table;
}
#else
namespace baseline {
extern const Kernels table;
}
#endif
#ifdef __x86_64__
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
namespace avx512bf16 {
extern const Kernels table;
}
#endif

namespace {

struct Candidate {
  const Kernels* table;
  bool supported;
};

#ifdef __x86_64__
// Of which Clang's __builtin_cpu_supports has known only lately.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

// Best first.
std::vector<Candidate> candidates() {
#ifdef __x86_64__
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return {
      {&avx512bf16::table, has_avx512 && __builtin_cpu_supports("avx512bf16")},
      {&avx512::table, has_avx512},
      {&avx2::table, has_avx2},
      {&baseline::table, true},
  };
#elif defined(__aarch64__)
  return {{&neon::table, true}};
#else
  return {{&baseline::table, true}};
#endif
}

const Kernels& choose() {
  const char* value = std::getenv("VISIONZIP_CPU_ISA");
  const char* forced = value && *value ? value : nullptr;
  std::string names;
  for (const auto& [table, supported] : candidates()) {
    if (!supported) continue;
    if (!forced || std::string(forced) == table->name) return *table;
    names += (names.empty() ? "" : ", ") + std::string(table->name);
  }
  throw std::runtime_error("VISIONZIP_CPU_ISA is \"" + std::string(forced) +
                           "\"; this CPU and build support: " + names);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace visionzip::cpu
