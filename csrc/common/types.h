// Element types, and what every implementation shares.  No torch header, no CUDA header.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define VISIONZIP_HOST_DEVICE __host__ __device__
#else
#define VISIONZIP_HOST_DEVICE
#endif

namespace visionzip {

enum class DType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

inline constexpr size_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// Where the scores of a decision come from.
enum class ScoreSource : int32_t {
  kScores,   // finished: (B, S)
  kRows,     // the rows that count, one a head: (B, H, S)
  kMatrix,   // softmaxed attention: (B, H, S, S)
  kQueryKey  // queries and keys, softmax inside
};

enum class MergeMode : int32_t { kResidual = 0, kMean = 1 };

// How the tokens that are kept are chosen by their scores.
enum class SelectionPolicy : int32_t {
  kAttention,  // the highest scores
  kDistinct    // one after another: score times what no kept token's key resembles
};

// What an operator is told of the choice.
struct SelectionRule {
  bool has_cls;  // token 0 is CLS: its attention scores the others
  SelectionPolicy policy;
  bool keep_cls;  // false, only with has_cls: CLS is neither kept nor one of the remaining tokens
};

// The remaining tokens number 0, step, 2 * step, ... are the targets.
VISIONZIP_HOST_DEVICE inline constexpr int64_t target_step(int64_t remaining, int64_t m) {
  return m > 0 && remaining / m > 1 ? remaining / m : 1;
}

}  // namespace visionzip
