// The words of the language that nvcc adds to C++; its variables are in current.h.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda_emulation/current.h"

#undef __shared__
#undef __launch_bounds__
#undef __grid_constant__
// A block is executed by an OS thread of its own.  A kernel takes its dynamic shared memory from
// cuda_emulation::dynamic_shared: an `extern __shared__` array would have no definition.
#define __shared__ thread_local
#define __launch_bounds__(...)
#define __grid_constant__
