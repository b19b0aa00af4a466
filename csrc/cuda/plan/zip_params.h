// What one launch of the fused kernel is given.  Plain data; no torch header and no CUDA header.
#pragma once

#include "cuda/plan/column_sums_params.h"
#include "cuda/plan/query_key.h"
#include "cuda/plan/zip_plan.h"

namespace visionzip::cuda {

// The tensors of a call.  Strides in elements; the last dimension of each has unit stride.  Where images are packed,
// those named `_image` are the strides of tokens.
struct ZipTensors : QueryKeyTensors {
  const void *hidden, *attn;  // hidden: wide (see QueryKeyTensors), or null; attn: null where queries are given
  void* tokens;               // output rows; null where hidden is
  int64_t *indices, *assignment;
  DType attn_dtype;
  int64_t hidden_image, hidden_token;
  int64_t attn_image, attn_head, attn_row;

  bool operator==(const ZipTensors&) const = default;
};

// Device memory that a plan asks for.
struct ZipWorkspace {
  float* column_sums;  // plan.column_sums->sums_bytes, where all queries score
  void* scratch;       // plan.scratch_bytes, of any values
};

// The problem, the tensors and the plan, whole, so that no field can be forgotten; as bases, so that a kernel says p.S.
struct ZipParams : ZipProblem, ZipTensors, ZipTiling {
  int32_t attn_rows;  // rows of attention that are averaged for each head; 1: the scores are sums over heads
  void* scratch;
};

// Where all queries score, the attention that the kernel reads is the column sums in the workspace.
ZipParams make_zip_params(const ZipProblem& problem, const ZipPlan& plan, const ZipTensors& tensors,
                          const ZipWorkspace& workspace);

// Of the launch before it, which makes those column sums; plan.column_sums is there.
ColumnSumsParams make_column_sums_params(const ZipProblem& problem, const ZipPlan& plan, const ZipTensors& tensors,
                                         const ZipWorkspace& workspace);

}  // namespace visionzip::cuda
