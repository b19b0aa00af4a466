// How the fused kernel is launched for a problem on a GPU.  Host code without torch and CUDA: tested without a GPU.
#pragma once

#include <string>

#include "cuda/plan/gpu.h"
#include "cuda/plan/zip_params.h"

namespace visionzip::cuda {

enum class Path : int32_t {
  kNone,     // the problem does not fit: the decision comes from the reference
  kCluster,  // a thread-block cluster an image
  kGrid,     // blocks that are resident together, over global memory
  kBlock     // one block an image
};

const char* name_of(Path path);

struct ZipPlan {
  Path path;
  int32_t blocks, threads, shared_bytes;
  int64_t scratch_bytes;
  std::string why;  // a sentence: why this path, or why none
};

// Fills in the plan's part of `params` (the problem's part is set).  forced: kNone, or the only path that may be taken;
// team: 0, or the only number of blocks that may be taken.  Throws std::invalid_argument where that is impossible.
ZipPlan plan_zip(ZipParams& params, int32_t element_bytes, const Gpu& gpu, Path forced, int32_t team);

// VISIONZIP_PATH=cluster|grid|block and VISIONZIP_TEAM=n, which tests force paths with.
Path forced_path();
int32_t forced_team();

}  // namespace visionzip::cuda
