// Stands in for CUDA's cuda_runtime.h where kernels are compiled to be executed on the host, and is, as nvcc does it,
// included before everything else.  The runtime's C interface is the toolkit's own cuda_runtime_api.h, of which
// src/runtime_api.cpp implements a part.
#pragma once

#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include "cuda_emulation/device_builtins.h"
#include "cuda_emulation/device_functions.h"
#include "cuda_emulation/device_math.h"
#include "cuda_emulation/runtime_api.h"
