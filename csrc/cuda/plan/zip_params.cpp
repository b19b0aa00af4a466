#include "cuda/plan/zip_params.h"

namespace visionzip::cuda {

namespace {

// Column sums are the attention of so few queries: (images, H, kSumChunks, S), or, of packed images, as
// ColumnSumsParams says.
ZipTensors with_column_sums(ZipTensors tensors, const ZipProblem& p, const float* sums) {
  tensors.attn = sums;
  tensors.attn_dtype = DType::kFloat32;
  tensors.attn_row = p.S;
  tensors.attn_head = tensors.attn_row * kSumChunks;
  tensors.attn_image = p.packed ? int64_t{p.H} * kSumChunks * p.group : tensors.attn_head * p.H;
  return tensors;
}

}  // namespace

ZipParams make_zip_params(const ZipProblem& problem, const ZipPlan& plan, const ZipTensors& tensors,
                          const ZipWorkspace& workspace) {
  const ZipTensors read =
      needs_column_sums(problem) ? with_column_sums(tensors, problem, workspace.column_sums) : tensors;
  return {problem, read, plan.tiling, attention_rows(problem), workspace.scratch};
}

ColumnSumsParams make_column_sums_params(const ZipProblem& problem, const ZipPlan& plan, const ZipTensors& tensors,
                                         const ZipWorkspace& workspace) {
  return make_column_sums_params(column_sums_problem(problem), *plan.column_sums, tensors, workspace.column_sums);
}

}  // namespace visionzip::cuda
