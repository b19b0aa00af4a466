// What every operator requires of its arguments.  Errors name the argument, what came and what was expected; the words
// are those of visionzip_ext/_checks.py, and a test holds the two together.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "common/types.h"

namespace visionzip {

using torch::stable::Tensor;

DType dtype_of(const Tensor& x);  // of a checked tensor

MergeMode parse_merge(const char* op, const std::string& word);

void check_zip(const Tensor& hidden, const Tensor& keys, const Tensor& attn, int64_t k, int64_t m, bool has_cls);
void check_select(const Tensor& keys, const Tensor& attn, int64_t k, int64_t m, bool has_cls);
void check_zip_qk(const Tensor& hidden, const Tensor& queries, const Tensor& keys, int64_t k, int64_t m, bool has_cls,
                  const std::optional<Tensor>& lse);
void check_select_qk(const Tensor& queries, const Tensor& keys, int64_t k, int64_t m, bool has_cls,
                     const std::optional<Tensor>& lse);
void check_merge(const Tensor& x, const Tensor& assignment, int64_t k, int64_t m);
void check_merge_backward(const Tensor& grad, const Tensor& assignment, int64_t k, int64_t m);

}  // namespace visionzip
