// Queries and keys as both scoring kernels read them.
#pragma once

#include <cstdint>

#include "cuda/plan/sequences.h"

namespace visionzip::cuda {

// Strides in elements; the last dimension of each has unit stride.  Where images are packed, those named `_image` are
// the strides of tokens.
struct QueryKeyTensors {
  const void *queries, *keys;  // (images, H, S, D), of one dtype; no queries where attention is given
  const float* lse;            // (images, H, S): the log-sum-exp of each query's logits, or null
  int64_t query_image, query_head, query_token;
  int64_t key_image, key_head, key_token;
  int64_t lse_image, lse_head;
  bool wide_queries, wide_keys;  // every row starts at a multiple of 16 bytes and is a multiple of 16 bytes long
  // Null, or where each of the images lies that are packed along one axis of tokens, and the order to take them in.
  const Sequence* sequences;
  const int32_t* order;

  bool operator==(const QueryKeyTensors&) const = default;
};

}  // namespace visionzip::cuda
