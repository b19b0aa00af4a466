#include "cuda/kernels/column_sums_launch.cuh"

namespace visionzip::cuda {

template cudaError_t launch_column_sums_as<__nv_bfloat16>(const ColumnSumsParams&, const ColumnSumsPlan&, cudaStream_t);

}  // namespace visionzip::cuda
