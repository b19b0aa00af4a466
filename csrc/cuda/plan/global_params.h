// What the launches of the path for images of any size are given.  Plain data; no torch and no CUDA header.
#pragma once

#include "cuda/plan/global_plan.h"
#include "cuda/plan/zip_params.h"

namespace visionzip::cuda {

// The fused kernel's, so that its phases read them; `order` is null: slices are in the order of images.
struct GlobalParams : ZipParams {
  GlobalLayout lies;
  int64_t slices;
};

// Of one launch of several: that which takes the image's token number `step`.
struct DistinctParams : GlobalParams {
  int32_t step;
};

inline GlobalParams make_global_params(const ZipProblem& problem, const ZipPlan& plan, const ZipTensors& tensors,
                                       const ZipWorkspace& workspace) {
  GlobalParams params{make_zip_params(problem, plan, tensors, workspace), make_global_layout(problem, plan.tiling),
                      count_slices(problem)};
  params.order = nullptr;
  return params;
}

}  // namespace visionzip::cuda
