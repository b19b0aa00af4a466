// What an OS thread holds beside the shared memory of the block that it executes: CUDA's built-in variables, and which
// thread they are those of.  All of it lies among the kernels' __shared__ variables, in the thread-local storage of the
// program or library that this code is linked into (shared_memory.h).
#pragma once

#include <cuda_runtime_api.h>

// Variables of their own, and not macros for members of one: cudaLaunchConfig_t has a gridDim as well.
inline thread_local uint3 threadIdx{}, blockIdx{};
inline thread_local dim3 blockDim{}, gridDim{};

namespace cuda_emulation {

struct Thread;

struct Current {
  Thread* thread;  // null: not within a kernel
};

inline thread_local Current current{};

}  // namespace cuda_emulation
