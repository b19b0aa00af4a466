// The column-sums kernel's launch.  No torch header.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/plan/column_sums_params.h"

namespace visionzip::cuda {

// params: made of the plan.
cudaError_t launch_column_sums(const ColumnSumsParams& params, const ColumnSumsPlan& plan, cudaStream_t stream);

}  // namespace visionzip::cuda
