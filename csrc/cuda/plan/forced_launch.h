// VISIONZIP_PLAN="team=7,threads=256,...": what is taken instead of what the plan would choose.  Nothing in a result
// depends on it.
#pragma once

#include <string>

#include "cuda/plan/zip_plan.h"

namespace visionzip::cuda {

// A key says how a step is done; of calls without such a step it says nothing:
//   path=cluster|grid|block  what a team of blocks is; or global, several launches, and no other key but sum_chunks
//   team=N                   blocks that work on one image
//   threads=N                of a block: a multiple of 32, at most kZipThreads
//   staged=0|1               hidden is read where it is, or copied into shared memory
//   tile=N                   16-byte vectors of channels that a block merges at a time, at most
//   select=digits|ranks      how the highest scores are found
//   sum_chunks=1|2|4|8       chunks of a head that a block sums the columns of
// Throws std::invalid_argument.
ForcedLaunch parse_forced_launch(const std::string& text);

// VISIONZIP_PLAN, read anew.
ForcedLaunch forced_by_environment();

// As it would be parsed.
std::string to_text(const ForcedLaunch& forced);

}  // namespace visionzip::cuda
