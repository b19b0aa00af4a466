// What a plan asks of a GPU.  No CUDA header: plans are made and tested on machines without a GPU.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace visionzip::cuda {

constexpr int32_t kMostClusterBlocks = 16;

struct Gpu {
  int32_t compute_capability;  // 90 for 9.0
  int32_t multiprocessors;
  int32_t block_shared_bytes;  // most dynamic shared memory of a block, opted in
  // How many clusters of so many blocks, each of which fills a multiprocessor, run at the same time; 0: such a launch
  // would fail.  A cluster lies within one of the GPU's processing clusters, some of which have fewer multiprocessors
  // than others, or than this build of the GPU has elsewhere: 132 multiprocessors may hold only 7 clusters of 16.
  std::array<int32_t, kMostClusterBlocks + 1> clusters{};
};

// As if a cluster could lie anywhere.  Those of more than 8 blocks are Hopper's and the data-centre Blackwells'.
inline void assume_clusters(Gpu& gpu) {
  const int32_t most = gpu.compute_capability < 90 ? 0 : gpu.compute_capability < 110 ? kMostClusterBlocks : 8;
  for (int32_t blocks = 1; blocks <= kMostClusterBlocks; blocks++) {
    gpu.clusters[static_cast<size_t>(blocks)] = blocks <= most ? gpu.multiprocessors / blocks : 0;
  }
}

}  // namespace visionzip::cuda
