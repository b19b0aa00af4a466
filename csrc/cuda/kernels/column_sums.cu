// Which instantiation of the column-sums kernel a problem means.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/kernels/column_sums.h"

namespace visionzip::cuda {

template <class T>
cudaError_t launch_column_sums_as(const ColumnSumsParams& params, const ColumnSumsPlan& plan, cudaStream_t stream);

cudaError_t launch_column_sums(const ColumnSumsParams& params, const ColumnSumsPlan& plan, cudaStream_t stream) {
  switch (params.dtype) {
    case DType::kFloat32:
      return launch_column_sums_as<float>(params, plan, stream);
    case DType::kFloat16:
      return launch_column_sums_as<__half>(params, plan, stream);
    case DType::kBFloat16:
      return launch_column_sums_as<__nv_bfloat16>(params, plan, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace visionzip::cuda
