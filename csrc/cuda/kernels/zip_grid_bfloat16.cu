#include "cuda/kernels/team_grid.cuh"
#include "cuda/kernels/zip_launch.cuh"

namespace visionzip::cuda {

template cudaError_t launch_zip_as<__nv_bfloat16, GridTeam>(const ZipParams&, const ZipPlan&, cudaStream_t);

}  // namespace visionzip::cuda
