// Which library the schemas and the CUDA operators are registered in, and for which device.  The CUDA sources are also
// compiled to be executed on the host (tools/cuda_emulation), as operators of a library of their own, on CPU tensors.
#pragma once

#ifdef CUDA_EMULATION
#define VISIONZIP_LIBRARY visionzip_emulated
#define VISIONZIP_CUDA_KEY CPU
#else
#define VISIONZIP_LIBRARY visionzip
#define VISIONZIP_CUDA_KEY CUDA
#endif

// Expands the library's name, which torch 2.10's macro takes as it is written.
#define VISIONZIP_DEFINE_OPERATORS(library, m) STABLE_TORCH_LIBRARY(library, m)
