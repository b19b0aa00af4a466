// What the operators on packed sequences require of their arguments: what every device can tell without reading a
// tensor, and what only a device whose memory the host reads can (`check_sequences`).
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace visionzip {

// The arguments that say how packed tokens are scored, and where sequences begin and end.
struct PackedArguments {
  torch::stable::Tensor keys, cu_seqlens;
  std::vector<int64_t> k, m;  // one number for all sequences, or one for each
  std::optional<torch::stable::Tensor> queries, scores;
  std::optional<double> scale;
  std::optional<torch::stable::Tensor> lse;
  std::optional<int64_t> max_seqlen;
  int64_t group;
  bool has_cls;
};

// Afterwards k and m hold a number for each sequence.
void check_select_packed(PackedArguments& arguments);
void check_zip_packed(const torch::stable::Tensor& hidden, PackedArguments& arguments);
void check_merge_packed(const torch::stable::Tensor& x, const torch::stable::Tensor& assignment,
                        const torch::stable::Tensor& cu_seqlens, std::vector<int64_t>& k, std::vector<int64_t>& m);
void check_merge_packed_backward(const torch::stable::Tensor& grad, const torch::stable::Tensor& assignment,
                                 const torch::stable::Tensor& cu_seqlens, std::vector<int64_t>& k,
                                 std::vector<int64_t>& m);

// The values of cu_seqlens (n + 1 numbers) rise from 0 to T, and every sequence has room for its k and m.
void check_sequences(const char* op, const int32_t* cu_seqlens, int64_t T, const std::vector<int64_t>& k,
                     const std::vector<int64_t>& m, std::optional<int64_t> max_seqlen);

}  // namespace visionzip
