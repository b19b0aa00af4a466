// The CPU kernels as one table for each instruction set.  They work on a part of one image; phases.cpp cuts
// an image into parts, torch/execute.cpp gives them to threads, and no result depends on either.
#pragma once

#include "common/types.h"
#include "cpu/plan/plan.h"

namespace visionzip::cpu {

// Keys of one image.  Element (head, token, d) lies at keys + head * head_stride + token * token_stride + d.
struct KeyRows {
  const void* keys;
  DType dtype;
  int64_t head_stride, token_stride;
  int64_t heads, D;
};

// From one read of the keys: the metric, and the CLS row's logits where `query` is given.
struct MetricTask {
  KeyRows keys;
  float* metric;       // (S, D): the sum over heads; cosine similarity does not see the 1 / H of the mean
  const float* query;  // (H, D): CLS's query, widened; or null
  float* logits;       // (H, S)
  int64_t S;
  float scale;
};

// Rows of attention of one image: (heads, S) or (heads, S, S), every last dimension of unit stride.
struct AttentionRows {
  const void* attn;
  DType dtype;
  int64_t head_stride, row_stride;
  int64_t heads, rows, S;
};

// Column sums of softmax(scale * Q K^T) of one head of one image.
struct ColumnSumTask {
  const void *queries, *keys;
  DType dtype;
  int64_t query_stride, key_stride;
  const float* lse;  // (S), or null
  int64_t S, D;
  float scale;
};

// The policy "distinct" on one image.  Buffers of candidates have room for a multiple of `lanes`.
struct DistinctTask {
  const float* units;   // of the candidates, packed by `pack_units`
  const float* scores;  // (candidates)
  int64_t candidates, D, count;
  float* resemblance;  // (candidates): to the most similar token that is kept; workspace
  float* unit;         // (D): workspace
  int64_t* kept;       // (count): candidates, in the order in which they are taken
};

struct AssignTask {
  const float* metric;      // (S, D)
  const float* directions;  // packed by `pack_directions`
  const int64_t* tokens;    // the tokens to merge
  int64_t D, m;
  int64_t first_row;    // the output row of target 0
  int64_t* assignment;  // (S): written for the tokens of this task
};

// Output rows: kept rows [kept_begin, kept_end) and those of targets [target_begin, target_end).
struct RowShare {
  int64_t kept_begin, kept_end, target_begin, target_end;
};

struct MergeTask {
  const void* x;  // (S, C), rows `token_stride` apart
  void* out;      // (k + m, C), contiguous
  DType dtype;
  int64_t token_stride, C, k, m;
  MergeMode mode;
  const int64_t* kept;     // (k): the token of each kept row
  const int64_t* targets;  // (m): the token of each target
  RowShare rows;
  const int64_t* tokens;  // (merged): the tokens to merge into the share's targets, by target, ascending for each
  int64_t merged;
  const int64_t* counts;  // (m): tokens merged into each target
};

// The adjoint of a merge.
struct MergeBackwardTask {
  const void* grad;  // (k + m, C), rows `row_stride` apart
  void* out;         // (S, C), contiguous
  DType dtype;
  int64_t row_stride, C;
  const int64_t* assignment;  // (S)
  const float* weights;       // (S)
};

struct Kernels {
  const char* name;

  // A float vector's length: what is packed needs its number of rows rounded up to it.
  int64_t lanes;

  void (*widen)(const void* x, DType dtype, int64_t n, float* out);
  void (*metric)(const MetricTask&, int64_t token_begin, int64_t token_end);
  // scores[j] = factor * sum over heads, rows ascending, for columns [begin, end)
  void (*add_rows)(const AttentionRows&, float factor, float* scores, int64_t begin, int64_t end);
  // Turns each head's logits (H, S) into probabilities and adds them up over heads: scores (S).
  // lse: the log-sum-exp of head h at lse[h * lse_head_stride], or null.
  void (*softmax_sum)(float* logits, const float* lse, int64_t lse_head_stride, int64_t heads, int64_t S,
                      float* scores);
  size_t (*column_sum_workspace)(int64_t S, int64_t D);  // bytes
  // Query chunks [begin, end) of kQueryChunks; chunk c's sums are written to out + (c - begin) * S.
  void (*column_sums)(const ColumnSumTask&, int64_t chunk_begin, int64_t chunk_end, float* out, void* workspace);
  // Unit vectors of `count` rows of D channels, transposed: ceil(count / lanes) blocks of (D, lanes).
  void (*pack_units)(const float* metric, int64_t count, int64_t D, float* units);
  void (*keep_distinct)(const DistinctTask&);
  // Unit vectors of the targets' metrics, transposed: ceil(m / lanes) blocks of (D, lanes).
  void (*pack_directions)(const float* metric, const int64_t* targets, int64_t m, int64_t D, float* out);
  void (*assign)(const AssignTask&, int64_t begin, int64_t end);
  // Channels [begin, end); sum: end - begin floats of workspace.
  void (*merge)(const MergeTask&, int64_t begin, int64_t end, float* sum);
  void (*merge_backward)(const MergeBackwardTask&, int64_t token_begin, int64_t token_end);
};

// The best table that this CPU runs, or the one that VISIONZIP_CPU_ISA names.  Throws std::runtime_error if that is
// unknown or not supported by the CPU.
const Kernels& kernels();

}  // namespace visionzip::cpu
