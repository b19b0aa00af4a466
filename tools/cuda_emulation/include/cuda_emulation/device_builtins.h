// The words of the language that nvcc adds to C++; its variables are in current.h.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda_emulation/current.h"

#undef __shared__
#undef __constant__
#undef __launch_bounds__
#undef __cluster_dims__
#undef __grid_constant__
// A block is executed by an OS thread of its own.  A kernel takes its dynamic shared memory from
// csrc/cuda/kernels/dynamic_shared.cuh: an `extern __shared__` array would have no definition.
#define __shared__ thread_local
#define __constant__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__

constexpr int warpSize = 32;
