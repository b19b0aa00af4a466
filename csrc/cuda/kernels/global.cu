// The path for images of any size: one launch after another, each for all images.
#include <algorithm>

#include "cuda/kernels/global.h"
#include "cuda/kernels/global_assign.cuh"
#include "cuda/kernels/global_distinct.cuh"
#include "cuda/kernels/global_scores.cuh"
#include "cuda/kernels/global_select.cuh"
#include "cuda/kernels/launch.h"

namespace visionzip::cuda {

template <class T>
cudaError_t launch_global_keys_as(const GlobalParams& params, const LaunchShape& shape, cudaStream_t stream);

namespace {

// Kernels go on with the work of blocks that a grid has no room for.
LaunchShape shape_of(int64_t blocks, int threads) {
  constexpr int64_t kMostBlocks = 0x7fffffff;
  return {static_cast<unsigned>(std::min(blocks, kMostBlocks)), static_cast<unsigned>(threads)};
}

cudaError_t launch_keys(const GlobalParams& p, cudaStream_t stream) {
  const LaunchShape shape = shape_of(p.slices, kSliceThreads);
  switch (p.dtype) {
    case DType::kFloat32:
      return launch_global_keys_as<float>(p, shape, stream);
    case DType::kFloat16:
      return launch_global_keys_as<__half>(p, shape, stream);
    case DType::kBFloat16:
      return launch_global_keys_as<__nv_bfloat16>(p, shape, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_scores(const GlobalParams& p, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  if (scores_in_kernel(p)) {
    const int64_t blocks = ceil_divide(p.images * p.H, kStatThreads / 32);
    error = launch(global_softmax_kernel, shape_of(blocks, kStatThreads), stream, p);
  } else if (p.attn_rows > 1) {
    error = launch(global_columns_kernel, shape_of(p.slices * p.attn_heads, kSliceTokens), stream, p);
  }
  return error != cudaSuccess ? error : launch(global_scores_kernel, shape_of(p.slices, kSliceTokens), stream, p);
}

// As many launches as the image with the most of them needs.
cudaError_t take_distinct(const GlobalParams& p, cudaStream_t stream) {
  void* taken = static_cast<char*>(p.scratch) + p.lies.taken;
  cudaError_t error = cudaMemsetAsync(taken, 0, static_cast<size_t>(p.lies.taken_bytes), stream);
  const int32_t most = p.k + rowless_tokens(p) - p.has_cls;
  for (int32_t step = 0; step <= most && error == cudaSuccess; step++) {
    error = launch(global_distinct_kernel, shape_of(p.slices, kSliceThreads), stream, DistinctParams{p, step});
  }
  return error;
}

}  // namespace

cudaError_t launch_global(const GlobalParams& p, cudaStream_t stream) {
  if (const cudaError_t error = launch_keys(p, stream)) return error;
  if (const cudaError_t error = launch_scores(p, stream)) return error;
  if (p.policy == SelectionPolicy::kDistinct) {
    if (const cudaError_t error = take_distinct(p, stream)) return error;
  }
  if (const cudaError_t error = launch(global_select_kernel, shape_of(p.images, kSelectThreads), stream, p)) {
    return error;
  }
  if (p.m == 0) return cudaSuccess;
  if (const cudaError_t error = launch(global_targets_kernel, shape_of(p.slices, kSliceThreads), stream, p)) {
    return error;
  }
  return launch(global_assign_kernel, shape_of(p.slices, kSliceThreads), stream, p);
}

}  // namespace visionzip::cuda
