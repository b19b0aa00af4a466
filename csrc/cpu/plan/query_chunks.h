// Known to the plan and to the kernels; without the plan's headers, because the kernels are compiled for several
// instruction sets and must not bring inline functions along.
#pragma once

#include <cstdint>

namespace visionzip {

// Column sums of softmax(Q K^T) take the queries of a head in so many chunks, however many threads there are, so that
// the order of the sums is fixed.
constexpr int64_t kQueryChunks = 4;

}  // namespace visionzip
