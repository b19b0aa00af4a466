// The scheduler: who works on which images and phases.
#pragma once

#include <vector>

#include "cpu/kernels/inputs.h"

namespace visionzip::cpu {

// A batch: images of the same sizes.
void execute_batch(const CallInputs& call, const std::vector<ImageInputs>& images);

// Images of any sizes; each gives the same bits as in a batch.
void execute_packed(const CallInputs& call, const std::vector<ImageInputs>& images);

}  // namespace visionzip::cpu
