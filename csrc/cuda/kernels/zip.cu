// Which instantiation of the fused kernel a plan means.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/kernels/team.h"
#include "cuda/kernels/zip.h"

namespace visionzip::cuda {

template <class T, class Team>
cudaError_t launch_zip_as(const ZipParams& params, const ZipPlan& plan, cudaStream_t stream);
template <class T>
void count_clusters_as(Gpu& gpu);

namespace {

template <class Team>
cudaError_t launch_team(const ZipParams& params, const ZipPlan& plan, cudaStream_t stream) {
  switch (params.dtype) {
    case DType::kFloat32:
      return launch_zip_as<float, Team>(params, plan, stream);
    case DType::kFloat16:
      return launch_zip_as<__half, Team>(params, plan, stream);
    case DType::kBFloat16:
      return launch_zip_as<__nv_bfloat16, Team>(params, plan, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_zip(const ZipParams& params, const ZipPlan& plan, cudaStream_t stream) {
  if (plan.path == Path::kCluster) {
#ifdef VISIONZIP_WITH_CLUSTERS
    return launch_team<ClusterTeam>(params, plan, stream);
#else
    return cudaErrorNoKernelImageForDevice;
#endif
  }
  if (plan.scratch_bytes > 0) {
    const cudaError_t error = cudaMemset2DAsync(params.scratch, static_cast<size_t>(params.scratch_of_team), 0,
                                                kCounterBytes, static_cast<size_t>(params.teams), stream);
    if (error != cudaSuccess) return error;
  }
  return launch_team<GridTeam>(params, plan, stream);
}

cudaError_t describe_gpu(Gpu& gpu) {
  int device, major, minor;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  const auto read = [&](int& value, cudaDeviceAttr attribute) {
    return cudaDeviceGetAttribute(&value, attribute, device);
  };
  if (const cudaError_t error = read(major, cudaDevAttrComputeCapabilityMajor)) return error;
  if (const cudaError_t error = read(minor, cudaDevAttrComputeCapabilityMinor)) return error;
  if (const cudaError_t error = read(gpu.multiprocessors, cudaDevAttrMultiProcessorCount)) return error;
  gpu.compute_capability = major * 10 + minor;
  return read(gpu.block_shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

void count_clusters([[maybe_unused]] Gpu& gpu) {
#ifdef VISIONZIP_WITH_CLUSTERS
  if (gpu.compute_capability >= 90) count_clusters_as<__nv_bfloat16>(gpu);
#endif
}

}  // namespace visionzip::cuda
