#include "cuda/kernels/global_keys.cuh"

namespace visionzip::cuda {

template cudaError_t launch_global_keys_as<__nv_bfloat16>(const GlobalParams&, const LaunchShape&, cudaStream_t);

}  // namespace visionzip::cuda
