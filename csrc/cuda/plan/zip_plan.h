// How the fused kernel, and the launch of column sums before it, are launched for a problem on a GPU.  Host code
// without torch and CUDA: tested without a GPU.
#pragma once

#include <optional>
#include <string>

#include "cuda/plan/column_sums_plan.h"
#include "cuda/plan/gpu.h"
#include "cuda/plan/zip_problem.h"
#include "cuda/plan/zip_tiling.h"

namespace visionzip::cuda {

enum class Path : int32_t {
  kNone,     // no launch can be so large
  kCluster,  // a thread-block cluster an image
  kGrid,     // blocks that are resident together, over global memory
  kBlock,    // one block an image
  kGlobal    // several launches over global memory, for images of any size; they decide, and merge does the rest
};

const char* name_of(Path path);

struct ZipPlan {
  Path path;
  int32_t blocks, threads, shared_bytes;
  int64_t scratch_bytes;
  ZipTiling tiling;
  std::optional<ColumnSumsPlan> column_sums;  // of the launch before, where all queries score
  std::string why;                            // a sentence: why this path, or why none

  bool operator==(const ZipPlan&) const = default;
};

// The only path and the only number of blocks that may be taken; kNone and 0: any.
struct ForcedLaunch {
  Path path = Path::kNone;
  int32_t team = 0;
};

// Throws std::invalid_argument where what is forced is impossible.
ZipPlan plan_zip(const ZipProblem& problem, const Gpu& gpu, const ForcedLaunch& forced = {});

// VISIONZIP_PATH=cluster|grid|block|global and VISIONZIP_TEAM=n, which tests force paths with.
ForcedLaunch forced_by_environment();

}  // namespace visionzip::cuda
