#pragma once

#include "image.h"

namespace visionzip::cpu {

// Carries a problem out for all images.  decision is null for `merge`, merge is null for `select`.
void execute(const Problem& problem, const DecisionInputs* decision, const MergeInputs* merge);

}  // namespace visionzip::cpu
