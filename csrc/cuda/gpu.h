// What a plan asks of a GPU.  No CUDA header: plans are made and tested on machines without a GPU.
#pragma once

#include <cstdint>

namespace visionzip::cuda {

struct Gpu {
  int32_t compute_capability;  // 90 for 9.0
  int32_t multiprocessors;
  int32_t block_shared_bytes;  // most dynamic shared memory of a block, opted in
};

}  // namespace visionzip::cuda
