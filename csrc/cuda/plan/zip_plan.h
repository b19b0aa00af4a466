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

// What is taken instead of what the plan would choose: kNone, 0 and nullopt leave it the choice (forced_launch.h).
struct ForcedLaunch {
  Path path = Path::kNone;
  int32_t team = 0;
  int32_t threads = 0;     // of a block
  int32_t tile = 0;        // 16-byte vectors of channels that a block merges at a time, at most
  int32_t sum_chunks = 0;  // of a head, that a block sums the columns of
  std::optional<bool> staged, rank_counting;

  bool operator==(const ForcedLaunch&) const = default;
};

// Throws std::invalid_argument where what is forced is impossible.
ZipPlan plan_zip(const ZipProblem& problem, const Gpu& gpu, const ForcedLaunch& forced = {});

}  // namespace visionzip::cuda
