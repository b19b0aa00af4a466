// What the operators on packed sequences require of their arguments: what every device can tell without reading a
// tensor, and what only a device whose memory the host reads can (`check_sequences`).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "checks/tensor_info.h"

namespace visionzip {

// The arguments that say how packed tokens are scored, and where sequences begin and end.
template <class AnyTensor>
struct PackedArgumentsOf {
  AnyTensor keys, cu_seqlens;
  std::vector<int64_t> k, m;  // one number for all sequences, or one for each
  std::optional<AnyTensor> queries, scores;
  std::optional<double> scale;
  std::optional<AnyTensor> lse;
  std::optional<int64_t> max_seqlen;
  int64_t group;
  SelectionRule rule;
};

using PackedArguments = PackedArgumentsOf<Tensor>;
using PackedInfo = PackedArgumentsOf<TensorInfo>;

// Afterwards k and m hold a number for each sequence, and queries have a scale.
void check_select_packed(PackedInfo& arguments);
void check_select_packed(PackedArguments& arguments);
void check_zip_packed(const TensorInfo& hidden, PackedInfo& arguments);
void check_zip_packed(const Tensor& hidden, PackedArguments& arguments);
void check_merge_packed(const TensorInfo& x, const TensorInfo& assignment, const TensorInfo& cu_seqlens,
                        std::vector<int64_t>& k, std::vector<int64_t>& m);
void check_merge_packed_backward(const TensorInfo& grad, const TensorInfo& assignment, const TensorInfo& cu_seqlens,
                                 std::vector<int64_t>& k, std::vector<int64_t>& m);

// The values of cu_seqlens (n + 1 numbers) rise from 0 to T, and every sequence has room for its k and m, besides CLS
// where that takes no row (keep_cls is false).
void check_sequences(const char* op, const int32_t* cu_seqlens, int64_t T, const std::vector<int64_t>& k,
                     const std::vector<int64_t>& m, std::optional<int64_t> max_seqlen, bool keep_cls);

}  // namespace visionzip
