// Dynamic shared memory, whose size is given at the launch.
#pragma once

namespace visionzip::cuda {

// Aligned to 16 bytes.
__device__ __forceinline__ unsigned char* dynamic_shared() {
#ifdef CUDA_EMULATION
  return static_cast<unsigned char*>(cuda_emulation::dynamic_shared());
#else
  extern __shared__ __align__(16) unsigned char visionzip_dynamic_shared[];
  return visionzip_dynamic_shared;
#endif
}

}  // namespace visionzip::cuda
