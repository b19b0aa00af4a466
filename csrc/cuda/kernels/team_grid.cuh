// A Team (team.h) for every GPU.
#pragma once

#include "cuda/kernels/ptx.cuh"
#include "cuda/plan/zip_params.h"

namespace visionzip::cuda {

// Blocks that are only known to be resident together (a cooperative launch), or one block alone: a mirror of the
// replicated arrays in global memory, and a counter that is zero at launch.  A team of one touches neither.
//
// There are two mirrors, used alternately: an image without merging ends without a barrier, so a quick block's scores
// of the next image may be written while a slow one still reads the last image's.
class GridTeam {
 public:
  __device__ GridTeam(const ZipParams& p, char* shared)
      : rank(static_cast<int>(blockIdx.x % p.team_blocks)),
        size_(p.team_blocks),
        team_(blockIdx.x / p.team_blocks),
        Dp_(p.Dp),
        bytes_(p.at.replicated_end),
        shared_(shared),
        counter_(nullptr) {
    if (size_ == 1) return;
    char* global = static_cast<char*>(p.scratch) + team_ * p.scratch_of_team;
    counter_ = reinterpret_cast<unsigned*>(global);
    mirrors_ = mirror_ = global + kCounterBytes;
    metric_ = reinterpret_cast<float*>(mirrors_ + 2 * static_cast<size_t>(bytes_));
  }

  __device__ int64_t first_position() const { return team_; }
  __device__ void start_arrive() { mirror_ = mirror_ == mirrors_ ? mirrors_ + bytes_ : mirrors_; }
  __device__ void start_wait() {}

  template <class T>
  __device__ void spread(const T* a, int i, int n) const {
    if (size_ == 1) return;
    T* to = mirrored(a) + i;
    for (int x = threadIdx.x; x < n; x += blockDim.x) to[x] = a[i + x];
  }
  __device__ void arrive() {
    __syncthreads();
    if (size_ == 1) return;
    phase_++;
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(counter_, 1u);
    }
  }
  __device__ void wait() {
    if (size_ == 1) return;
    if (threadIdx.x == 0) {
      while (ptx::load_acquire(counter_) < phase_ * static_cast<unsigned>(size_)) __nanosleep(32);
      __threadfence();
    }
    __syncthreads();
  }
  template <class T>
  __device__ void fetch(T* a, int n) {
    if (size_ == 1) return;
    const T* from = mirrored(a);
    for (int i = threadIdx.x; i < n; i += blockDim.x) a[i] = __ldcg(from + i);
    __syncthreads();
  }
  template <class T>
  __device__ T read(const T* a, int i) const {
    return size_ == 1 ? a[i] : __ldcg(mirrored(a) + i);
  }
  __device__ void publish4(int token, int d, float4 x) {
    if (size_ > 1) *reinterpret_cast<float4*>(metric_ + static_cast<size_t>(token) * Dp_ + d) = x;
  }
  __device__ float4 metric4(const float* own_metric, int, int Dp, int token, int d) const {
    const size_t at = static_cast<size_t>(token) * Dp + d;
    return size_ == 1 ? *reinterpret_cast<const float4*>(own_metric + at)
                      : __ldcg(reinterpret_cast<const float4*>(metric_ + at));
  }
  const int rank;

 private:
  template <class T>
  __device__ T* mirrored(const T* a) const {
    return reinterpret_cast<T*>(mirror_ + (reinterpret_cast<const char*>(a) - shared_));
  }

  const int size_;
  const int64_t team_;
  const int Dp_, bytes_;
  char* const shared_;
  unsigned* counter_;
  char *mirrors_ = nullptr, *mirror_ = nullptr;
  float* metric_ = nullptr;
  unsigned phase_ = 0;
};

}  // namespace visionzip::cuda
