// A Team (team.h) for sm_90 and later.
#pragma once

#include "cuda/kernels/ptx.cuh"
#include "cuda/plan/zip_params.h"

namespace visionzip::cuda {

// A thread-block cluster (sm_90 and later): replicated arrays are pushed into every member's shared memory.
class ClusterTeam {
 public:
  __device__ ClusterTeam(const ZipParams&, char*) : rank(ptx::cluster_rank()), size_(ptx::cluster_size()) {}

  __device__ int64_t first_position() const { return blockIdx.x / size_; }
  __device__ void start_arrive() { ptx::cluster_arrive_relaxed(); }
  __device__ void start_wait() { ptx::cluster_wait(); }
  __device__ void arrive() { ptx::cluster_arrive(); }
  __device__ void wait() { ptx::cluster_wait(); }

  // The widest stores that the slice's place and length allow.
  template <class T>
  __device__ void spread(T* a, int i, int n) const {
    const auto granularity = static_cast<unsigned>((i * sizeof(T)) | (n * sizeof(T)));
    if (granularity % 16 == 0) {
      push(reinterpret_cast<uint4*>(a + i), static_cast<int>(n * sizeof(T) / 16));
    } else if (sizeof(T) < 8 && granularity % 8 == 0) {
      push(reinterpret_cast<uint2*>(a + i), static_cast<int>(n * sizeof(T) / 8));
    } else {
      push(a + i, n);
    }
  }
  template <class T>
  __device__ void fetch(T*, int) {}
  template <class T>
  __device__ T read(const T* a, int i) const {
    return a[i];
  }
  __device__ void publish4(int, int, float4) {}
  __device__ float4 metric4(const float* own_metric, int block_tokens, int Dp, int token, int d) const {
    const int owner = token / block_tokens;
    const float* row = own_metric + static_cast<size_t>(token - owner * block_tokens) * Dp;
    return *ptx::cluster_peer(reinterpret_cast<const float4*>(row + d), static_cast<unsigned>(owner));
  }

  const int rank;

 private:
  // Neighbours first, so that nobody is flooded.
  template <class U>
  __device__ void push(U* a, int n) const {
    for (int x = threadIdx.x; x < n * (size_ - 1); x += blockDim.x) {
      const int hop = x / n, i = x - hop * n;
      const int peer = rank + 1 + hop < size_ ? rank + 1 + hop : rank + 1 + hop - size_;
      *ptx::cluster_peer(a + i, static_cast<unsigned>(peer)) = a[i];
    }
  }

  const int size_;
};

}  // namespace visionzip::cuda
