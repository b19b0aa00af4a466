// Launches of the merge kernels: which element type, and whether rows can be read 16 bytes at a time.
#include <cstdint>

#include "cuda/kernels/launch.h"
#include "cuda/kernels/merge.cuh"

namespace visionzip::cuda {

namespace {

bool is_wide(const MergeParams& p) {
  const int64_t size = static_cast<int64_t>(size_of(p.dtype));
  const auto aligned = [](int64_t bytes) { return bytes % 16 == 0; };
  return aligned(static_cast<int64_t>(reinterpret_cast<uintptr_t>(p.in))) &&
         aligned(static_cast<int64_t>(reinterpret_cast<uintptr_t>(p.out))) && aligned(p.C * size) &&
         aligned(p.row_stride * size) && aligned(p.image_stride * size);
}

template <class T>
cudaError_t launch_as(const MergeParams& p, cudaStream_t stream, bool backward) {
  const int64_t rows = p.all_rows + (backward ? p.B : 0);
  constexpr int64_t kMostBlocks = 0x7fffffff;
  const auto blocks = static_cast<unsigned>(rows < kMostBlocks ? rows : kMostBlocks);
  const auto kernel = backward ? (is_wide(p) ? merge_backward_kernel<T, kElements<T>> : merge_backward_kernel<T, 1>)
                               : (is_wide(p) ? merge_kernel<T, kElements<T>> : merge_kernel<T, 1>);
  return launch(kernel, {blocks, kMergeThreads}, stream, p);
}

cudaError_t launch_any(const MergeParams& p, cudaStream_t stream, bool backward) {
  switch (p.dtype) {
    case DType::kFloat32:
      return launch_as<float>(p, stream, backward);
    case DType::kFloat16:
      return launch_as<__half>(p, stream, backward);
    case DType::kBFloat16:
      return launch_as<__nv_bfloat16>(p, stream, backward);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_merge(const MergeParams& params, cudaStream_t stream) { return launch_any(params, stream, false); }

cudaError_t launch_merge_backward(const MergeParams& params, cudaStream_t stream) {
  return launch_any(params, stream, true);
}

}  // namespace visionzip::cuda
