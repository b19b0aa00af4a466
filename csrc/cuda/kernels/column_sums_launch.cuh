// Launches of the column-sums kernel for one element type.  column_sums_<dtype>.cu instantiate it, a file each, so that
// they compile side by side.
#pragma once

#include "cuda/kernels/column_sums.h"
#include "cuda/kernels/column_sums_kernel.cuh"
#include "cuda/kernels/column_sums_sliced.cuh"
#include "cuda/kernels/launch.h"

namespace visionzip::cuda {

template <class T>
cudaError_t launch_sliced_as(const ColumnSumsParams& params, const ColumnSumsPlan& plan, cudaStream_t stream) {
  const LaunchShape shape{static_cast<unsigned>(plan.blocks), static_cast<unsigned>(plan.threads)};
  if (!params.has_lse) {
    if (const cudaError_t error = launch(sliced_stats_kernel<T>, shape, stream, params)) return error;
  }
  return launch(sliced_columns_kernel<T>, shape, stream, params);
}

// Vision encoders' head dimensions are known to the compiler where tensor cores are used, whose products would else
// wait for addresses.
template <class T>
cudaError_t launch_column_sums_as(const ColumnSumsParams& params, const ColumnSumsPlan& plan, cudaStream_t stream) {
  if (params.sliced) return launch_sliced_as<T>(params, plan, stream);
  const auto with = [&](auto kernel) {
    LaunchShape shape{static_cast<unsigned>(plan.blocks), static_cast<unsigned>(plan.threads)};
    shape.shared_bytes = static_cast<size_t>(plan.shared_bytes);
    return launch(kernel, shape, stream, params);
  };
  if constexpr (sizeof(T) == 2) {
    switch (params.D) {
      case 64:
        return with(column_sums_kernel<T, 64>);
      case 72:
        return with(column_sums_kernel<T, 72>);
      case 80:
        return with(column_sums_kernel<T, 80>);
      case 96:
        return with(column_sums_kernel<T, 96>);
      case 128:
        return with(column_sums_kernel<T, 128>);
      default:
        break;
    }
  }
  return with(column_sums_kernel<T, 0>);
}

}  // namespace visionzip::cuda
