#include <cuda_fp16.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

#include "faults.h"
#include "launch.h"

// Every kernel copies `in` to `out` in a way of its own; with p.broken, against a rule.  The line to be blamed carries
// the test's name in a comment, for whoever runs it to look for.  Exchanges are between thread t and the thread at the
// other end of its block or warp, so that no order of threads hides a missing barrier.
namespace cuda_emulation::tests {

namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

__device__ int own_index() { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }
__device__ int mirrored(int t) { return kFaultThreads - 1 - t; }

// ---- barriers of a block and synchronisation of a warp ----

__global__ void missing_barrier(FaultParams p) {
  __shared__ float numbers[kFaultThreads];
  const int t = static_cast<int>(threadIdx.x), base = own_index() - t;
  numbers[t] = p.in[base + t];
  if (!p.broken) __syncthreads();
  p.out[base + mirrored(t)] = numbers[mirrored(t)];  // blamed: missing_barrier
}

__global__ void missing_syncwarp(FaultParams p) {
  __shared__ float numbers[kFaultThreads];
  const int t = static_cast<int>(threadIdx.x), base = own_index() - t, other = t ^ 31;
  numbers[t] = p.in[base + t];
  if (p.broken) {
    __shfl_sync(kAllLanes, t, 0);  // lanes meet here, but memory is not ordered
  } else {
    __syncwarp();
  }
  p.out[base + other] = numbers[other];  // blamed: missing_syncwarp
}

__global__ void divergent_barrier(FaultParams p) {
  if (p.broken && threadIdx.x >= 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  p.out[own_index()] = p.in[own_index()];
}

__global__ void left_before_barrier(FaultParams p) {
  p.out[own_index()] = p.in[own_index()];
  if (p.broken && threadIdx.x == 5) return;
  __syncthreads();  // blamed: left_before_barrier
}

__global__ void barrier_in_one_warp(FaultParams p) {
  const bool first = threadIdx.x < 32;
  if (p.broken) {
    if (first) __syncthreads();  // blamed: barrier_in_one_warp
    if (!first && threadIdx.x != 32) __syncwarp();
  }
  p.out[own_index()] = p.in[own_index()];
}

__global__ void unset_shared(FaultParams p) {
  __shared__ float sum;
  if (!p.broken && threadIdx.x == 0) sum = 0;
  __syncthreads();
  if (threadIdx.x == 0) sum += 1;
  __syncthreads();
  p.out[own_index()] = p.in[own_index()] + sum - 1;
}

// ---- warp collectives ----

__global__ void lane_not_in_mask(FaultParams p) {
  const unsigned mask = p.broken ? 0x7fffffffu : kAllLanes;
  p.out[own_index()] =
      __shfl_sync(mask, p.in[own_index()], static_cast<int>(threadIdx.x % 32));  // blamed: lane_not_in_mask
}

__global__ void different_masks(FaultParams p) {
  const bool half = p.broken && threadIdx.x % 32 < 16;
  p.out[own_index()] =
      __shfl_xor_sync(half ? 0x0001ffffu : kAllLanes, p.in[own_index()], 0);  // blamed: different_masks
}

__global__ void shuffle_from_absent_lane(FaultParams p) {
  const int lane = static_cast<int>(threadIdx.x % 32), source = p.broken ? 31 - lane : lane;
  float x = p.in[own_index()];
  if (lane < 16) x = __shfl_sync(0xffffu, x, source);  // blamed: shuffle_from_absent_lane
  p.out[own_index()] = x;
}

__global__ void divergent_collective(FaultParams p) {
  float x = p.in[own_index()];
  if (p.broken && threadIdx.x % 2 == 0) {
    x += static_cast<float>(__any_sync(kAllLanes, 0));
  } else if (p.broken) {
    x += static_cast<float>(__ballot_sync(kAllLanes, 0));
  }
  p.out[own_index()] = x;
}

__global__ void left_before_collective(FaultParams p) {
  p.out[own_index()] = p.in[own_index()];
  if (p.broken && threadIdx.x % 32 == 3) return;
  __syncwarp();  // blamed: left_before_collective
}

// ---- matrices of a warp ----

// The numbers of a warp as one matrix of eight rows of 16 bytes, loaded four times over.
__device__ float load_as_matrix(const float* numbers, int shift, Site site) {
  const int lane = static_cast<int>(threadIdx.x % 32), first = static_cast<int>(threadIdx.x) - lane;
  uint32_t words[4];
  load_matrices(words, numbers + first + lane % 8 * 4 + shift, site);
  return __uint_as_float(words[0]);
}

__global__ void misaligned_matrix(FaultParams p) {
  alignas(16) __shared__ float numbers[kFaultThreads];
  numbers[threadIdx.x] = p.in[own_index()];
  __syncthreads();
  const int shift = p.broken ? 1 : 0;
  p.out[own_index()] = load_as_matrix(numbers, shift, Site::current());  // blamed: misaligned_matrix
}

__global__ void matrix_not_shared(FaultParams p) {
  alignas(16) __shared__ float numbers[kFaultThreads];
  numbers[threadIdx.x] = p.in[own_index()];
  __syncthreads();
  const float* from = p.broken ? p.in + own_index() - threadIdx.x : numbers;
  p.out[own_index()] = load_as_matrix(from, 0, Site::current());  // blamed: matrix_not_shared
}

__global__ void matrix_read_too_early(FaultParams p) {
  alignas(16) __shared__ float numbers[kFaultThreads];
  numbers[threadIdx.x] = p.in[own_index()];
  if (!p.broken) __syncthreads();
  p.out[own_index()] = load_as_matrix(numbers, 0, Site::current());  // blamed: matrix_read_too_early
}

__global__ void product_without_all_lanes(FaultParams p) {
  float d[4] = {p.in[own_index()], 0, 0, 0};
  const uint32_t zeros[4] = {};
  if (!p.broken || threadIdx.x % 32 < 30) {
    multiply_matrices<__half>(d, zeros, zeros, 16);  // blamed: product_without_all_lanes
  }
  p.out[own_index()] = d[0];
}

// ---- memory ----

__global__ void dynamic_shared_too_small(FaultParams p) {
  auto* numbers = reinterpret_cast<float*>(dynamic_shared());
  const int t = static_cast<int>(threadIdx.x);
  numbers[t + (p.broken && t == kFaultThreads - 1)] = p.in[own_index()];  // blamed: dynamic_shared_too_small
  if (!p.broken) p.out[own_index()] = numbers[t];
}

__global__ void shared_array_too_small(FaultParams p) {
  __shared__ float numbers[kFaultThreads];
  const int t = static_cast<int>(threadIdx.x);
  const int shift = p.broken ? p.n / kFaultThreads : 0;
  numbers[t + shift] = p.in[own_index()];  // blamed: shared_array_too_small
  if (!p.broken) p.out[own_index()] = numbers[t];
}

__global__ void global_too_small(FaultParams p) {
  p.out[own_index()] = p.in[own_index() + p.broken];  // blamed: global_too_small
}

__global__ void division_by_zero(FaultParams p) {
  const int divisor = p.broken && threadIdx.x == 3 ? p.n - kFaultBlocks * kFaultThreads : 1;
  const auto i = static_cast<int>(own_index() / divisor);  // blamed: division_by_zero
  p.out[i] = p.in[i];
}

__global__ void wild_pointer(FaultParams p) {
  const float* in = p.broken && threadIdx.x == 3 ? nullptr : p.in;
  p.out[own_index()] = in[own_index()];  // blamed: wild_pointer
}

__global__ void misaligned_vector(FaultParams p) {
  const int i = own_index();
  if (i >= p.n / 4) return;
  const auto* in = reinterpret_cast<const float4*>(p.in + (p.broken && i + 1 < p.n / 4));
  *reinterpret_cast<float4*>(p.out + 4 * i) = in[i];  // blamed: misaligned_vector
}

__global__ void misaligned_copy(FaultParams p) {
  auto* numbers = reinterpret_cast<float*>(dynamic_shared());
  const int i = static_cast<int>(threadIdx.x) * 4, base = static_cast<int>(blockIdx.x) * kFaultThreads;
  if (i >= kFaultThreads) return;
  const int shift = p.broken && i == 8 ? 1 : 0;
  copy_async(numbers + i, p.in + base + i + shift, 16);  // blamed: misaligned_copy
  commit_copies();
  wait_for_copies(0);
  for (int e = 0; e < 4; e++) p.out[base + i + e] = numbers[i + e];
}

// Two groups of copies are on their way; the first is waited for, or neither.
__global__ void missing_copy_wait(FaultParams p) {
  auto* numbers = reinterpret_cast<float*>(dynamic_shared());
  const int t = static_cast<int>(threadIdx.x), base = static_cast<int>(blockIdx.x) * kFaultThreads;
  if (t < kFaultThreads / 4) copy_async(numbers + 4 * t, p.in + base + 4 * t, 16);
  commit_copies();
  commit_copies();
  if (p.broken) {
    wait_for_copies(2);
  } else {
    wait_for_copies(1);
  }
  __syncthreads();
  p.out[base + t] = numbers[t];  // blamed: missing_copy_wait
}

// The buffer of a copy is still being read when the next copy is issued.
__global__ void copy_into_buffer_in_use(FaultParams p) {
  auto* numbers = reinterpret_cast<float*>(dynamic_shared());
  const int t = static_cast<int>(threadIdx.x), base = static_cast<int>(blockIdx.x) * kFaultThreads;
  numbers[t] = p.in[base + t];
  __syncthreads();
  p.out[base + mirrored(t)] = numbers[mirrored(t)];
  if (!p.broken) __syncthreads();
  if (t < kFaultThreads / 4) copy_async(numbers + 4 * t, p.in + 4 * t, 16);  // blamed: copy_into_buffer_in_use
  commit_copies();
  wait_for_copies(0);
}

// ---- clusters ----

__device__ void whole_cluster_barrier() {
  cluster_arrive();
  cluster_wait();
}

// Each block takes its numbers from the other one's shared memory.
__global__ void cluster_read_too_early(FaultParams p) {
  __shared__ float numbers[kFaultThreads];
  const int t = static_cast<int>(threadIdx.x), peer = 1 - cluster_rank();
  whole_cluster_barrier();
  numbers[t] = p.in[own_index()];
  if (!p.broken) whole_cluster_barrier();
  const float* theirs = map_shared_rank(numbers, static_cast<unsigned>(peer));
  p.out[peer * kFaultThreads + mirrored(t)] = theirs[mirrored(t)];  // blamed: cluster_read_too_early
  whole_cluster_barrier();
}

// Each block puts its numbers into the other one's shared memory.
__global__ void cluster_write_too_late(FaultParams p) {
  __shared__ float numbers[kFaultThreads];
  const int t = static_cast<int>(threadIdx.x), peer = 1 - cluster_rank();
  cluster_arrive_relaxed();
  cluster_wait();
  map_shared_rank(numbers, static_cast<unsigned>(peer))[t] = p.in[own_index()];
  if (!p.broken) whole_cluster_barrier();
  p.out[peer * kFaultThreads + mirrored(t)] = numbers[mirrored(t)];  // blamed: cluster_write_too_late
  whole_cluster_barrier();
}

// A relaxed arrival orders nothing.
__global__ void cluster_relaxed(FaultParams p) {
  __shared__ float numbers[kFaultThreads];
  const int t = static_cast<int>(threadIdx.x), peer = 1 - cluster_rank();
  numbers[t] = p.in[own_index()];
  if (p.broken) {
    cluster_arrive_relaxed();
  } else {
    cluster_arrive();
  }
  cluster_wait();
  const float* theirs = map_shared_rank(numbers, static_cast<unsigned>(peer));
  p.out[peer * kFaultThreads + mirrored(t)] = theirs[mirrored(t)];  // blamed: cluster_relaxed
  whole_cluster_barrier();
}

__global__ void cluster_not_started(FaultParams p) {
  __shared__ float number;
  if (!p.broken) whole_cluster_barrier();
  if (own_index() == 0) *map_shared_rank(&number, 1u) = 1;  // blamed: cluster_not_started
  whole_cluster_barrier();
  p.out[own_index()] = p.in[own_index()];
}

// Block 0 reads the shared memory of block 1, which does not wait for it.
__global__ void cluster_peer_exited(FaultParams p) {
  auto* numbers = reinterpret_cast<float*>(dynamic_shared());
  const int t = static_cast<int>(threadIdx.x);
  numbers[t] = p.in[own_index()];
  p.out[own_index()] = p.in[own_index()];
  whole_cluster_barrier();
  if (cluster_rank() == 0) {
    for (int i = 0; i < 50; i++) __nanosleep(100);
    p.out[kFaultThreads + t] = map_shared_rank(numbers, 1u)[t];  // blamed: cluster_peer_exited
  }
  if (!p.broken) whole_cluster_barrier();
}

// The same with an address that was made in time.
__global__ void cluster_read_after_exit(FaultParams p) {
  auto* numbers = reinterpret_cast<float*>(dynamic_shared());
  const int t = static_cast<int>(threadIdx.x);
  numbers[t] = p.in[own_index()];
  p.out[own_index()] = p.in[own_index()];
  whole_cluster_barrier();
  const float* theirs = map_shared_rank(numbers, 1u);
  whole_cluster_barrier();
  if (cluster_rank() == 0) {
    for (int i = 0; i < 50; i++) __nanosleep(100);
    p.out[kFaultThreads + t] = theirs[t];  // blamed: cluster_read_after_exit
  }
  if (!p.broken) whole_cluster_barrier();
}

__global__ void cluster_arrival_without_wait(FaultParams p) {
  p.out[own_index()] = p.in[own_index()];
  cluster_arrive();  // blamed: cluster_arrival_without_wait
  if (!p.broken) cluster_wait();
}

__global__ void cluster_wait_without_arrival(FaultParams p) {
  p.out[own_index()] = p.in[own_index()];
  if (!p.broken) cluster_arrive();
  cluster_wait();  // blamed: cluster_wait_without_arrival
}

__global__ void cluster_second_arrival(FaultParams p) {
  p.out[own_index()] = p.in[own_index()];
  cluster_arrive();
  if (p.broken) cluster_arrive();  // blamed: cluster_second_arrival
  cluster_wait();
}

__global__ void cluster_barrier_left_out(FaultParams p) {
  p.out[own_index()] = p.in[own_index()];
  if (p.broken && blockIdx.x == 1) return;
  cluster_arrive();  // blamed: cluster_barrier_left_out
  cluster_wait();
}

__global__ void cluster_barriers_crossed(FaultParams p) {
  p.out[own_index()] = p.in[own_index()];
  const bool waits_alone = p.broken && blockIdx.x == 1 && threadIdx.x < 32;
  if (!waits_alone) whole_cluster_barrier();
  __syncthreads();  // blamed: cluster_barriers_crossed
}

__global__ void peer_of_global(FaultParams p) {
  __shared__ float number;
  whole_cluster_barrier();
  const float* own = p.broken ? p.in : &number;
  map_shared_rank(own, 1u);  // blamed: peer_of_global
  p.out[own_index()] = p.in[own_index()];
  whole_cluster_barrier();
}

// ---- grids ----

// The blocks of a cooperative launch exchange their numbers through global memory.
__global__ void grid_without_fence(FaultParams p) {
  const int t = static_cast<int>(threadIdx.x), i = own_index();
  p.out[i] = p.in[p.n - 1 - i];
  __syncthreads();
  if (t == 0) {
    if (!p.broken) __threadfence();
    atomicAdd(p.counter, 1u);
    while (load_acquire(p.counter, sizeof *p.counter) < gridDim.x) __nanosleep(20);
    __threadfence();
  }
  __syncthreads();
  const float x = p.out[p.n - 1 - i];  // blamed: grid_without_fence
  __syncthreads();
  if (t == 0) {
    __threadfence();
    atomicAdd(p.counter, 1u);
    while (load_acquire(p.counter, sizeof *p.counter) < 2 * gridDim.x) __nanosleep(20);
    __threadfence();
  }
  __syncthreads();
  p.out[i] = x;
}

__global__ void grid_waits_for_ever(FaultParams p) {
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(p.counter, 1u);
    const unsigned expected = gridDim.x + (p.broken ? 1u : 0u);
    while (load_acquire(p.counter, sizeof *p.counter) < expected) __nanosleep(20);  // blamed: grid_waits_for_ever
    __threadfence();
  }
  __syncthreads();
  p.out[own_index()] = p.in[own_index()];
}

__global__ void blocks_race(FaultParams p) {
  if (threadIdx.x == 0) {
    if (p.broken) {
      *p.counter = *p.counter + 1;  // blamed: blocks_race
    } else {
      atomicAdd(p.counter, 1u);
    }
  }
  p.out[own_index()] = p.in[own_index()];
}

// ---- launches ----

using Kernel = void (*)(FaultParams);

struct Fault {
  Kernel kernel;
  unsigned cluster = 1;
  bool cooperative = false;
  size_t shared = 0;
};

constexpr size_t kNumbers = kFaultThreads * sizeof(float);

const std::map<std::string, Fault>& faults() {
  static const std::map<std::string, Fault> all{
      {"missing_barrier", {missing_barrier}},
      {"missing_syncwarp", {missing_syncwarp}},
      {"divergent_barrier", {divergent_barrier}},
      {"left_before_barrier", {left_before_barrier}},
      {"barrier_in_one_warp", {barrier_in_one_warp}},
      {"unset_shared", {unset_shared}},
      {"lane_not_in_mask", {lane_not_in_mask}},
      {"different_masks", {different_masks}},
      {"shuffle_from_absent_lane", {shuffle_from_absent_lane}},
      {"divergent_collective", {divergent_collective}},
      {"left_before_collective", {left_before_collective}},
      {"misaligned_matrix", {misaligned_matrix}},
      {"matrix_not_shared", {matrix_not_shared}},
      {"matrix_read_too_early", {matrix_read_too_early}},
      {"product_without_all_lanes", {product_without_all_lanes}},
      {"dynamic_shared_too_small", {dynamic_shared_too_small, 1, false, kNumbers}},
      {"shared_array_too_small", {shared_array_too_small}},
      {"global_too_small", {global_too_small}},
      {"division_by_zero", {division_by_zero}},
      {"wild_pointer", {wild_pointer}},
      {"misaligned_vector", {misaligned_vector}},
      {"misaligned_copy", {misaligned_copy, 1, false, kNumbers}},
      {"missing_copy_wait", {missing_copy_wait, 1, false, kNumbers}},
      {"copy_into_buffer_in_use", {copy_into_buffer_in_use, 1, false, kNumbers}},
      {"cluster_read_too_early", {cluster_read_too_early, 2}},
      {"cluster_write_too_late", {cluster_write_too_late, 2}},
      {"cluster_relaxed", {cluster_relaxed, 2}},
      {"cluster_not_started", {cluster_not_started, 2}},
      {"cluster_peer_exited", {cluster_peer_exited, 2, false, kNumbers}},
      {"cluster_read_after_exit", {cluster_read_after_exit, 2, false, kNumbers}},
      {"cluster_arrival_without_wait", {cluster_arrival_without_wait, 2}},
      {"cluster_wait_without_arrival", {cluster_wait_without_arrival, 2}},
      {"cluster_second_arrival", {cluster_second_arrival, 2}},
      {"cluster_barrier_left_out", {cluster_barrier_left_out, 2}},
      {"cluster_barriers_crossed", {cluster_barriers_crossed, 2}},
      {"peer_of_global", {peer_of_global, 2}},
      {"grid_without_fence", {grid_without_fence, 1, true}},
      {"grid_waits_for_ever", {grid_waits_for_ever, 1, true}},
      {"blocks_race", {blocks_race}},
  };
  return all;
}

// Memory of exactly this size, for AddressSanitizer.
template <class T>
class GlobalMemory {
 public:
  explicit GlobalMemory(size_t n) { cudaMalloc(reinterpret_cast<void**>(&data_), n * sizeof(T)); }
  GlobalMemory(const GlobalMemory&) = delete;
  GlobalMemory& operator=(const GlobalMemory&) = delete;
  ~GlobalMemory() { cudaFree(data_); }

  T* data() const { return data_; }
  T& operator[](size_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
};

}  // namespace

bool is_fault(const std::string& name) { return faults().count(name) > 0; }

Outcome run_fault(const std::string& name, bool broken) {
  const Fault& fault = faults().at(name);
  constexpr int kNumbersInAll = kFaultBlocks * kFaultThreads;
  const GlobalMemory<float> in(kNumbersInAll), out(kNumbersInAll);
  const GlobalMemory<unsigned> counter(1);
  for (int i = 0; i < kNumbersInAll; i++) in[static_cast<size_t>(i)] = static_cast<float>(i);
  counter[0] = 0;
  LaunchShape shape{kFaultBlocks, kFaultThreads};
  shape.shared_bytes = fault.shared;
  shape.cluster_blocks = fault.cluster;
  shape.cooperative = fault.cooperative;
  const FaultParams params{in.data(), out.data(), counter.data(), kNumbersInAll, broken};
  Outcome outcome;
  outcome.error = launch(fault.kernel, shape, params);
  for (int i = 0; i < kNumbersInAll; i++) {
    outcome.right = outcome.right && out[static_cast<size_t>(i)] == in[static_cast<size_t>(i)];
  }
  return outcome;
}

}  // namespace cuda_emulation::tests
