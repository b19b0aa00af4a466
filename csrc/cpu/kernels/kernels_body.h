// One instruction set's table of kernels.  Included by kernels_<isa>.cpp, each compiled with that instruction set's
// flags.
#pragma once

#include "cpu/kernels/assign_body.h"
#include "cpu/kernels/column_sums_body.h"
#include "cpu/kernels/distinct_body.h"
#include "cpu/kernels/merge_body.h"
#include "cpu/kernels/metric_body.h"
#include "cpu/kernels/scores_body.h"

#define VISIONZIP_STRING_(x) #x
#define VISIONZIP_STRING(x) VISIONZIP_STRING_(x)

namespace visionzip::cpu::VISIONZIP_ISA {

extern const Kernels table;
const Kernels table = {
    .name = VISIONZIP_STRING(VISIONZIP_ISA),
    .lanes = kLanes,
    .widen = widen,
    .metric = metric,
    .add_rows = add_rows,
    .softmax_sum = softmax_sum,
    .column_sum_workspace = column_sum_workspace,
    .column_sums = column_sums,
    .pack_units = pack_units,
    .keep_distinct = keep_distinct,
    .pack_directions = pack_directions,
    .assign = assign,
    .merge = merge,
    .merge_backward = merge_backward,
};

}  // namespace visionzip::cpu::VISIONZIP_ISA
