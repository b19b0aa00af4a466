// The column-sums kernel's launch.  No torch header.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/plan/column_sums_plan.h"

namespace visionzip::cuda {

// queries and keys are of one dtype; params: planned.
cudaError_t launch_column_sums(const ColumnSumsParams& params, DType dtype, const ColumnSumsPlan& plan,
                               cudaStream_t stream);

}  // namespace visionzip::cuda
