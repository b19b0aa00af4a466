// Launches of the fused kernel for one element type and one kind of team.  zip_<team>_<dtype>.cu instantiate it, a file
// each, so that they compile side by side.
#pragma once

#include "cuda/kernels/launch.h"
#include "cuda/kernels/zip.h"
#include "cuda/kernels/zip_kernel.cuh"

namespace visionzip::cuda {

template <class T, class Team>
cudaError_t launch_zip_as(const ZipParams& params, const ZipPlan& plan, cudaStream_t stream) {
  LaunchShape shape{static_cast<unsigned>(plan.blocks), static_cast<unsigned>(plan.threads)};
  shape.shared_bytes = static_cast<size_t>(plan.shared_bytes);
  if (plan.path == Path::kCluster) shape.cluster_blocks = static_cast<unsigned>(params.team_blocks);
  shape.cooperative = plan.path == Path::kGrid;
  return scores_in_kernel(params) ? launch(zip_kernel<T, true, Team>, shape, stream, params)
                                  : launch(zip_kernel<T, false, Team>, shape, stream, params);
}

// Gpu::clusters for such kernels, whose blocks fill a multiprocessor each whatever shared memory they take.
template <class T>
void count_clusters_as(Gpu& gpu) {
  for (unsigned blocks = 2; blocks <= kMostClusterBlocks; blocks++) {
    LaunchShape shape{blocks, kZipThreads};
    shape.shared_bytes = static_cast<size_t>(gpu.block_shared_bytes);
    shape.cluster_blocks = blocks;
    gpu.clusters[blocks] = count_clusters(zip_kernel<T, false, ClusterTeam>, shape);
  }
  gpu.clusters[1] = gpu.clusters[2] > 0 ? gpu.multiprocessors : 0;  // a launch of them is one without clusters
}

}  // namespace visionzip::cuda
