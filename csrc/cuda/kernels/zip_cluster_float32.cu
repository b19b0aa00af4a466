#include "cuda/kernels/team_cluster.cuh"
#include "cuda/kernels/zip_launch.cuh"

namespace visionzip::cuda {

template cudaError_t launch_zip_as<float, ClusterTeam>(const ZipParams&, const ZipPlan&, cudaStream_t);

}  // namespace visionzip::cuda
