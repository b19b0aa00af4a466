// What the adjoint of a merge multiplies a row's gradient by.
#pragma once

#include <cstdint>

#include "common/types.h"
#include "cpu/kernels/selection.h"

namespace visionzip::cpu {

// weights (S): each token's weight in its row, for one image.  assignment (S): rows, `first_target_row` that of target
// 0.  Tokens that are dropped have no weight: theirs is left as it is.
void token_weights(const int64_t* assignment, const Selection& selection, int64_t first_target_row, MergeMode mode,
                   float* weights);

}  // namespace visionzip::cpu
