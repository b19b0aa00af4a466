// How threads divide an image's output rows.
#pragma once

#include <vector>

#include "cpu/kernels/kernels.h"

namespace visionzip::cpu {

// The k kept rows and those of the targets, into which counts[t] tokens are merged, in so many shares of about equal
// work.  None where a few targets take most of the tokens, so that shares would differ much.
std::vector<RowShare> share_rows(const std::vector<int64_t>& counts, int64_t k, int64_t parts);

}  // namespace visionzip::cpu
