// How a problem is solved on a CPU: a description in, a configuration out, decided without touching data.  Nothing in a
// result depends on a plan.
#pragma once

#include <vector>

#include "common/types.h"

namespace visionzip::cpu {

// Column sums of softmax(Q K^T) take the queries of a head in this many chunks, whichever thread computes them, so that
// the order of the sums is fixed.
constexpr int64_t kQueryChunks = 4;

// Which part of the work an operator asks for.
enum class Operation : int32_t { kZip, kSelect, kMerge };

inline constexpr bool decides(Operation operation) { return operation != Operation::kMerge; }
inline constexpr bool merges(Operation operation) { return operation != Operation::kSelect; }

struct Problem {
  Operation operation;
  ScoreSource source;  // not for kMerge
  bool has_cls;
  int64_t B, S, C, H, D, k, m;  // C: not for kSelect; H, D: not for kMerge
  int64_t group = 1;            // cells of the encoder, each with a key and a score, that make one of the S tokens
  SelectionPolicy policy = SelectionPolicy::kAttention;
  bool keep_cls = true;  // false, only with has_cls: CLS is neither kept nor one of the remaining tokens
};

// What plans go by: matters of measurement.  `python -m benchmarks.tune` measures them.
struct Factors {
  int64_t least_tokens = 32;      // that are worth a thread
  int64_t head_rounds = 4;        // with fewer heads for a thread, column sums are shared by chunks of queries, too
  double most_above_mean = 1.15;  // one thread may take so much longer than their mean over packed images
  double assign_work = 0.125;     // of a multiplication in similarities and in column sums, which run from the cache,
  double column_work = 0.125;     // to one in reading keys
};

// VISIONZIP_CPU_PLAN="least_tokens=32,...", read anew, with the fields' names as keys; the others are as above.  Throws
// std::invalid_argument.
Factors factors();

struct ImagePlan {
  int64_t least_tokens;     // that are worth a thread
  int64_t whole_channels;   // channels that are merged at a time
  int64_t row_shares;       // threads that share an image share its output rows, in so many parts,
  int64_t shared_channels;  // or, where the parts would differ much, so many channels at a time
  int64_t query_chunks;     // column sums are shared by (head, chunk of queries); 1: by heads alone
};

// sharing: how many images of this size the threads share; 0: one thread works on the whole image.
ImagePlan plan_image(const Problem& image, int64_t sharing, int64_t threads);

// Who works on which images, by number.
struct Division {
  std::vector<std::vector<int64_t>> whole;  // for each thread: no barrier, and a metric stays in the core's cache
  std::vector<int64_t> shared;              // all threads work on all of them, phase by phase
};

// Of equal images: the last ones, fewer than threads, are shared.
Division divide_equal_images(int64_t images, int64_t threads);

// By each image's work: as few of the largest as possible are shared, so that the others divide evenly.
Division divide_images(const std::vector<double>& work, int64_t threads);

// About how much there is to do, for comparisons between images of one call.
double work_of(const Problem& image);

struct Plan {
  int64_t whole_images, shared_images;
  ImagePlan whole, shared;
  int64_t largest_temporary_bytes, workspace_bytes;  // not counting the outputs
};

// Of a batch of equal images.
Plan plan_batch(const Problem& problem, int64_t threads);

}  // namespace visionzip::cpu
