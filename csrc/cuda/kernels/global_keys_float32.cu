#include "cuda/kernels/global_keys.cuh"

namespace visionzip::cuda {

template cudaError_t launch_global_keys_as<float>(const GlobalParams&, const LaunchShape&, cudaStream_t);

}  // namespace visionzip::cuda
