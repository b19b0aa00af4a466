// How a problem is carried out: a description in, a configuration out, decided on the host without touching data.
// Nothing in a result depends on a plan.
#pragma once

#include "visionzip/types.h"

namespace visionzip {

// Which part of the work an operator asks for.
enum class Operation : int32_t { kZip, kSelect, kMerge };

struct Problem {
  Operation operation;
  ScoreSource source;  // not for kMerge
  bool has_cls;
  int64_t B, S, C, H, D, k, m;  // C: not for kSelect; H, D: not for kMerge
};

struct CpuPlan {
  int64_t whole_images;     // one thread works on a whole image: no barrier, and its metric stays in the core's cache
  int64_t shared_images;    // the last images, fewer than threads: all threads work on all of them, phase by phase
  int64_t key_tokens;       // the fewest tokens whose keys a thread reads
  int64_t whole_channels;   // channels that are merged at a time by a thread that works on a whole image
  int64_t row_shares;       // threads that share an image share its output rows, in so many parts,
  int64_t shared_channels;  // or, where the parts would differ much, so many channels at a time
  int64_t query_chunks;     // column sums are shared by (head, chunk of queries); 1: by heads alone
  int64_t largest_temporary_bytes, workspace_bytes;  // not counting the outputs
};

CpuPlan plan_cpu(const Problem& problem, int64_t threads);

}  // namespace visionzip
