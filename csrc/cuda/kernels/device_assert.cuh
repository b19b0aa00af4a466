// Assertions in kernels, as torch's own kernels make them: the kernel ends, and what is asked of the GPU afterwards
// fails.
#pragma once

#ifndef CUDA_EMULATION
extern "C" __host__ __device__ void __assert_fail(const char* assertion, const char* file, unsigned line,
                                                  const char* function) noexcept;
#endif

namespace visionzip::cuda {

// what: what holds where all is well.
__device__ __forceinline__ void device_assert(bool holds, const char* what) {
  if (holds) return;
#ifdef CUDA_EMULATION
  cuda_emulation::fail(what);
#else
  __assert_fail(what, "visionzip", 0, "cu_seqlens");
#endif
}

}  // namespace visionzip::cuda
