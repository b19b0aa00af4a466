// What every operator requires of its arguments, in one place: the operators call these with their tensors, and whoever
// has none (fake kernels, the reference's operators) asks through visionzip_ext._C.  Errors name the argument, what
// came and what was expected.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "checks/tensor_info.h"
#include "common/types.h"

namespace visionzip {

MergeMode parse_merge(const char* op, const std::string& word);

SelectionRule parse_rule(const char* op, bool has_cls, const std::string& policy, bool keep_cls);

// The attention's factor on Q K^T for heads of D channels, where none is given: D ** -0.5.
double scale_or_default(std::optional<double> scale, int64_t D);

void check_zip(const TensorInfo& hidden, const TensorInfo& keys, const TensorInfo& attn, int64_t k, int64_t m,
               const SelectionRule& rule);
void check_select(const TensorInfo& keys, const TensorInfo& attn, int64_t k, int64_t m, const SelectionRule& rule);
void check_zip_qk(const TensorInfo& hidden, const TensorInfo& queries, const TensorInfo& keys, int64_t k, int64_t m,
                  const SelectionRule& rule, const std::optional<TensorInfo>& lse);
void check_select_qk(const TensorInfo& queries, const TensorInfo& keys, int64_t k, int64_t m, const SelectionRule& rule,
                     const std::optional<TensorInfo>& lse);
void check_merge(const TensorInfo& x, const TensorInfo& assignment, int64_t k, int64_t m);
void check_merge_backward(const TensorInfo& grad, const TensorInfo& assignment, int64_t k, int64_t m);

}  // namespace visionzip
