// What the fused kernel is asked for, as a test or a tuner can write it down: sizes, element types and flags.  No
// pointers and no torch or CUDA header.
#pragma once

#include "common/types.h"
#include "cuda/plan/column_sums_problem.h"

namespace visionzip::cuda {

struct ZipProblem {
  DType dtype;         // of the keys, and of queries and hidden where there are any
  ScoreSource source;  // where scores come from
  bool has_cls;        // token 0 is CLS: its attention scores the others
  bool has_lse;        // the log-sum-exp of each query's logits is given
  bool has_hidden;     // output rows are made of hidden; otherwise there is a decision alone
  bool packed;         // images lie along one axis of tokens; S, k and m are the most that any of them has
  MergeMode mode;
  float scale;         // of logits
  int32_t S, k, m;     // of each image
  int32_t C, H, D;     // channels of hidden; heads of keys, and their channels
  int32_t attn_heads;  // of given attention; H where queries are given
  int32_t group;       // cells, rows of keys and scores, to a token; 1 unless images are packed
  int64_t images;
  int64_t all_tokens;  // of all images
  SelectionPolicy policy = SelectionPolicy::kAttention;
  bool keep_cls = true;  // false, only with has_cls: CLS is neither kept nor one of the remaining tokens

  bool operator==(const ZipProblem&) const = default;
};

// 1 where CLS takes no row: neither kept nor one of the remaining tokens.
VISIONZIP_HOST_DEVICE inline int32_t rowless_tokens(const ZipProblem& p) { return p.has_cls && !p.keep_cls ? 1 : 0; }

// CLS's queries are multiplied with the keys, and their softmax taken, inside the fused kernel.
VISIONZIP_HOST_DEVICE inline bool scores_in_kernel(const ZipProblem& p) {
  return p.source == ScoreSource::kQueryKey && p.has_cls;
}

// All queries score: a launch before the fused kernel's adds up their attention.
inline bool needs_column_sums(const ZipProblem& p) { return p.source == ScoreSource::kQueryKey && !p.has_cls; }

// Rows of attention that the fused kernel averages for each head.
inline int32_t attention_rows(const ZipProblem& p) {
  if (needs_column_sums(p)) return kSumChunks;
  return p.source == ScoreSource::kMatrix && !p.has_cls ? p.S : 1;
}

// Of an image that has at most 2^31 - 1 cells.
inline ColumnSumsProblem column_sums_problem(const ZipProblem& p) {
  return {.dtype = p.dtype,
          .has_lse = p.has_lse,
          .scale = p.scale,
          .S = p.S * p.group,
          .H = p.H,
          .D = p.D,
          .group = p.group,
          .images = p.images,
          .all_cells = p.all_tokens * p.group};
}

}  // namespace visionzip::cuda
