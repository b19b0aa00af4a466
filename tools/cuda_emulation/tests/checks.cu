#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "checks.h"
#include "faults.h"
#include "launch.h"

namespace cuda_emulation::tests {

namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

std::string text_of(cudaError_t error) { return error == cudaSuccess ? "" : cudaGetErrorString(error); }

// ---- warps ----

struct WarpParams {
  unsigned* results;  // kWarpResults of each thread
};
constexpr unsigned kWarpResults = 12;

__global__ void warp_functions(WarpParams p) {
  const unsigned lane = threadIdx.x % 32, value = 100 + lane;
  unsigned* to = p.results + kWarpResults * threadIdx.x;
  to[0] = __shfl_sync(kAllLanes, value, 7);
  to[1] = __shfl_up_sync(kAllLanes, value, 3);
  to[2] = __shfl_down_sync(kAllLanes, value, 3);
  to[3] = __shfl_xor_sync(kAllLanes, value, 5);
  to[4] = __shfl_down_sync(kAllLanes, value, 1, 8);
  to[5] = __ballot_sync(kAllLanes, lane % 3 == 0);
  to[6] = static_cast<unsigned>(__any_sync(kAllLanes, lane == 9)) + 2u * __all_sync(kAllLanes, lane < 31);
  to[7] = __match_any_sync(kAllLanes, lane / 4);
  to[8] = __reduce_add_sync(kAllLanes, value);
  to[9] = static_cast<unsigned>(__reduce_min_sync(kAllLanes, 5 - static_cast<int>(lane)));
  // Lanes of both halves meet for themselves, and in any order.
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  to[10] = __ballot_sync(half, lane % 2 == 0);
  __syncwarp();
  to[11] = __syncthreads_count(lane < 10);
}

std::string check_warps() {
  constexpr unsigned kThreads = 96;
  std::vector<unsigned> results(kThreads * kWarpResults);
  const LaunchShape shape{1, kThreads};
  if (auto error = text_of(launch(warp_functions, shape, WarpParams{results.data()})); !error.empty()) {
    return error;
  }
  for (unsigned t = 0; t < kThreads; t++) {
    const unsigned l = t % 32, value = 100 + l;
    const unsigned expected[kWarpResults] = {107,
                                             l >= 3 ? value - 3 : value,
                                             l <= 28 ? value + 3 : value,
                                             100 + (l ^ 5),
                                             l % 8 < 7 ? value + 1 : value,
                                             0x49249249u,
                                             1,
                                             0xfu << l / 4 * 4,
                                             32 * 100 + 31 * 16,
                                             static_cast<unsigned>(5 - 31),
                                             l < 16 ? 0x00005555u : 0x55550000u,
                                             30};
    for (unsigned i = 0; i < kWarpResults; i++) {
      if (results[t * kWarpResults + i] != expected[i]) {
        return "warp function " + std::to_string(i) + ", thread " + std::to_string(t);
      }
    }
  }
  return "";
}

// ---- indices, atomics, every dimension ----

struct GridParams {
  unsigned* visits;
  unsigned long long* sum;
  unsigned* last;
};

__global__ void count_visits(GridParams p) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned i = block * blockDim.x * blockDim.y * blockDim.z + thread;
  atomicAdd(&p.visits[i], 1u);
  atomicAdd(p.sum, static_cast<unsigned long long>(i));
  atomicMax(p.last, i);
}

std::string check_grid() {
  const dim3 grid(3, 2, 4), block(5, 3, 2);
  const unsigned n = 24 * 30;
  std::vector<unsigned> visits(n);
  unsigned long long sum = 0;
  unsigned last = 0;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  if (auto error = text_of(cudaLaunchKernelEx(&config, count_visits, GridParams{visits.data(), &sum, &last}));
      !error.empty()) {
    return error;
  }
  for (const unsigned count : visits) {
    if (count != 1) return "a thread was not executed once";
  }
  return sum == uint64_t{n} * (n - 1) / 2 && last == n - 1 ? "" : "atomics";
}

// ---- a cluster's sum, each block through the next one's shared memory; and a grid's ----

struct SumParams {
  const __half* in;
  float* out;  // one for each cluster
  int n;       // numbers of each cluster
};

__global__ void cluster_sum(SumParams p) {
  __shared__ float of_warps[32];
  __shared__ float received[16];
  const int rank = cluster_rank(), size = cluster_size(), cluster = static_cast<int>(blockIdx.x) / size;
  cluster_arrive_relaxed();
  float sum = 0;
  for (int i = rank * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x); i < p.n;
       i += size * static_cast<int>(blockDim.x)) {
    sum += __half2float(p.in[cluster * p.n + i]);
  }
  for (int o = 16; o > 0; o >>= 1) sum += __shfl_xor_sync(kAllLanes, sum, o);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = sum;
  __syncthreads();
  cluster_wait();  // all blocks have started
  if (threadIdx.x == 0) {
    sum = 0;
    for (unsigned w = 0; w < blockDim.x / 32; w++) sum += of_warps[w];
    for (int r = 0; r < size; r++) map_shared_rank(received, static_cast<unsigned>(r))[rank] = sum;
  }
  cluster_arrive();
  cluster_wait();
  if (rank != 0 || threadIdx.x != 0) return;
  sum = 0;
  for (int r = 0; r < size; r++) sum += received[r];
  p.out[cluster] = sum;
}

std::string check_clusters() {
  constexpr int kNumbers = 1000, kClusters = 3;
  std::vector<__half> in(kNumbers * kClusters);
  for (size_t i = 0; i < in.size(); i++) in[i] = __float2half(static_cast<float>(i % 7));
  for (const unsigned size : {1u, 2u, 4u, 8u, 16u}) {
    std::vector<float> out(kClusters);
    LaunchShape shape{size * kClusters, 64};
    shape.cluster_blocks = size;
    const SumParams params{in.data(), out.data(), kNumbers};
    if (auto error = text_of(launch(cluster_sum, shape, params)); !error.empty()) return error;
    for (int c = 0; c < kClusters; c++) {
      float expected = 0;
      for (int i = 0; i < kNumbers; i++) expected += static_cast<float>((c * kNumbers + i) % 7);
      if (out[static_cast<size_t>(c)] != expected) return "the sum of a cluster of " + std::to_string(size);
    }
  }
  return "";
}

struct RotateParams {
  float* numbers;  // two arrays, a number of each block in both
  unsigned* counter;
  int rounds;
};

// Every round, each block takes its neighbour's number.
__global__ void rotate(RotateParams p) {
  if (threadIdx.x == 0) {
    for (int round = 0; round < p.rounds; round++) {
      float* from = p.numbers + round % 2 * gridDim.x;
      float* to = p.numbers + (round + 1) % 2 * gridDim.x;
      to[blockIdx.x] = from[(blockIdx.x + 1) % gridDim.x];
      __threadfence();
      atomicAdd(p.counter, 1u);
      while (load_acquire(p.counter, sizeof *p.counter) < (round + 1) * gridDim.x) __nanosleep(32);
      __threadfence();
    }
  }
  __syncthreads();
}

std::string check_cooperation() {
  constexpr unsigned kBlocks = 7;
  constexpr int kRounds = 4;
  std::vector<float> numbers(2 * kBlocks);
  for (unsigned i = 0; i < kBlocks; i++) numbers[i] = static_cast<float>(i);
  unsigned counter = 0;
  LaunchShape shape{kBlocks, 32};
  shape.cooperative = true;
  const RotateParams params{numbers.data(), &counter, kRounds};
  if (auto error = text_of(launch(rotate, shape, params)); !error.empty()) return error;
  for (unsigned i = 0; i < kBlocks; i++) {
    if (numbers[kRounds % 2 * kBlocks + i] != static_cast<float>((i + kRounds) % kBlocks)) return "a block's number";
  }
  return "";
}

// ---- asynchronous copies in two buffers, waited for one by one ----

struct StreamParams {
  const float* in;
  float* out;
  int tiles;
};
constexpr int kTile = 128;  // numbers; four of each of 32 threads

__global__ void stream(StreamParams p) {
  auto* tiles = reinterpret_cast<float*>(dynamic_shared());
  const int t = static_cast<int>(threadIdx.x);
  const auto load = [&](int tile) {
    if (tile < p.tiles) copy_async(tiles + tile % 2 * kTile + 4 * t, p.in + tile * kTile + 4 * t, 16);
    commit_copies();
  };
  load(0);
  for (int tile = 0; tile < p.tiles; tile++) {
    load(tile + 1);
    wait_for_copies(1);
    __syncthreads();
    for (int i = t; i < kTile; i += 32) p.out[tile * kTile + i] = 2 * tiles[tile % 2 * kTile + kTile - 1 - i];
    __syncthreads();
  }
}

std::string check_copies() {
  constexpr int kTiles = 5;
  const std::unique_ptr<float, void (*)(void*)> in(static_cast<float*>(std::aligned_alloc(16, kTiles * kTile * 4)),
                                                   std::free);
  std::vector<float> out(kTiles * kTile);
  for (int i = 0; i < kTiles * kTile; i++) in.get()[i] = static_cast<float>(i);
  LaunchShape shape{1, 32};
  shape.shared_bytes = 2 * kTile * sizeof(float);
  if (auto error = text_of(launch(stream, shape, StreamParams{in.get(), out.data(), kTiles})); !error.empty()) {
    return error;
  }
  for (int i = 0; i < kTiles * kTile; i++) {
    const int tile = i / kTile, mirrored = tile * kTile + kTile - 1 - i % kTile;
    if (out[static_cast<size_t>(i)] != static_cast<float>(2 * mirrored)) return "number " + std::to_string(i);
  }
  return "";
}

// ---- products of matrices, 16 and 8 deep ----

struct MatrixParams {
  const void *a, *b;  // (16, 24) and, transposed, (8, 24); 16-bit elements
  float* d;           // (16, 8)
};
constexpr int kDepth = 24;

template <class T>
__global__ void multiply(MatrixParams p) {
  auto* a = reinterpret_cast<T*>(dynamic_shared());
  T* b = a + 16 * kDepth;
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 16 * kDepth; i += 32) a[i] = static_cast<const T*>(p.a)[i];
  for (int i = lane; i < 8 * kDepth; i += 32) b[i] = static_cast<const T*>(p.b)[i];
  __syncthreads();
  uint32_t of_a[4], of_b[4], last[4];
  load_matrices(of_a, a + lane % 16 * kDepth + lane / 16 * 8);
  load_matrices(of_b, b + lane % 8 * kDepth + lane / 8 % 2 * 8);
  // Rows of a, and again those of b.
  load_matrices(last, lane < 16 ? a + lane * kDepth + 16 : b + lane % 8 * kDepth + 16);
  float d[4] = {};
  multiply_matrices<T>(d, of_a, of_b, 16);
  multiply_matrices<T>(d, last, last + 2, 8);
  for (int i = 0; i < 4; i++) p.d[(lane / 4 + i / 2 * 8) * 8 + 2 * (lane % 4) + i % 2] = d[i];
}

template <class T>
std::string check_matrices_of(const char* name, T (*narrow)(float)) {
  const auto of_a = [](int i, int c) { return static_cast<float>((5 * i + 3 * c) % 17 - 8); };
  const auto of_b = [](int j, int c) { return static_cast<float>((7 * j + 11 * c) % 13 - 6); };
  std::vector<T> a(16 * kDepth), b(8 * kDepth);
  for (int c = 0; c < kDepth; c++) {
    for (int i = 0; i < 16; i++) a[static_cast<size_t>(i * kDepth + c)] = narrow(of_a(i, c));
    for (int j = 0; j < 8; j++) b[static_cast<size_t>(j * kDepth + c)] = narrow(of_b(j, c));
  }
  std::vector<float> d(16 * 8);
  LaunchShape shape{1, 32};
  shape.shared_bytes = 24 * kDepth * sizeof(T);
  if (auto error = text_of(launch(multiply<T>, shape, MatrixParams{a.data(), b.data(), d.data()})); !error.empty()) {
    return error;
  }
  for (int i = 0; i < 16; i++) {
    for (int j = 0; j < 8; j++) {
      float expected = 0;
      for (int c = 0; c < kDepth; c++) expected += of_a(i, c) * of_b(j, c);
      if (d[static_cast<size_t>(i * 8 + j)] != expected) {
        return std::string(name) + ": row " + std::to_string(i) + ", column " + std::to_string(j);
      }
    }
  }
  return "";
}

std::string check_matrices() {
  const std::string wrong = check_matrices_of<__half>("float16", [](float x) { return __float2half_rn(x); });
  if (!wrong.empty()) return wrong;
  return check_matrices_of<__nv_bfloat16>("bfloat16", [](float x) { return __float2bfloat16_rn(x); });
}

// ---- what a GPU would refuse ----

__global__ void nothing(WarpParams) {}

std::string check_limits() {
  const auto error_of = [](unsigned blocks, unsigned threads, size_t shared, unsigned cluster, bool cooperative) {
    LaunchShape shape{blocks, threads};
    shape.shared_bytes = shared;
    shape.cluster_blocks = cluster;
    shape.cooperative = cooperative;
    const cudaError_t error = launch(nothing, shape, WarpParams{});
    return cudaGetLastError() == error ? error : cudaErrorUnknown;
  };
  if (error_of(1, 1024, 227 << 10, 1, false) != cudaSuccess) return "227 KiB of shared memory";
  if (error_of(1, 32, 228 << 10, 1, false) != cudaErrorInvalidValue) return "228 KiB of shared memory";
  if (error_of(1, 1025, 0, 1, false) != cudaErrorInvalidConfiguration) return "1025 threads";
  if (error_of(0, 32, 0, 1, false) != cudaErrorInvalidConfiguration) return "no blocks";
  if (error_of(16, 32, 0, 16, false) != cudaSuccess) return "a cluster of 16";
  if (error_of(32, 32, 0, 32, false) != cudaErrorInvalidClusterSize) return "a cluster of 32";
  if (error_of(3, 32, 0, 2, false) != cudaErrorInvalidClusterSize) return "a grid that clusters do not divide";
  if (error_of(132, 64, 200 << 10, 1, true) != cudaSuccess) return "a block on each multiprocessor";
  if (error_of(133, 64, 200 << 10, 1, true) != cudaErrorCooperativeLaunchTooLarge) return "more blocks than fit";
  int blocks = 0;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, nothing, 512, 50 << 10);
  if (blocks != 4) return "occupancy";
  cudaDeviceProp properties;
  cudaGetDeviceProperties(&properties, 0);
  return properties.major == 9 && properties.multiProcessorCount == 132 ? "" : "the device's properties";
}

const std::map<std::string, std::string (*)()>& checks() {
  static const std::map<std::string, std::string (*)()> all{
      {"warps", check_warps},       {"grid", check_grid},
      {"clusters", check_clusters}, {"cooperation", check_cooperation},
      {"copies", check_copies},     {"limits", check_limits},
      {"matrices", check_matrices}};
  return all;
}

}  // namespace

bool is_check(const std::string& name) { return checks().count(name) > 0; }

std::string run_check(const std::string& name) { return checks().at(name)(); }

}  // namespace cuda_emulation::tests
