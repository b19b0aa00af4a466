#include "cuda/kernels/team_cluster.cuh"
#include "cuda/kernels/zip_launch.cuh"

namespace visionzip::cuda {

template cudaError_t launch_zip_as<__nv_bfloat16, ClusterTeam>(const ZipParams&, const ZipPlan&, cudaStream_t);

template void count_clusters_as<__nv_bfloat16>(Gpu&);

}  // namespace visionzip::cuda
