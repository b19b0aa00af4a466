// A call of an operator as one block of memory, which travels through a pipe: python_tests/support/cpu_driver.py writes
// it.
#pragma once

#include <cstdint>

namespace visionzip::instruction_set_tests {

enum class Op : int64_t { kZip, kSelect, kMerge, kMergeBackward };

// Tensors are contiguous and lie in the block, each so many bytes from its beginning; 0: there is none.
struct Call {
  char instruction_set[16];  // whose kernels are to compute it
  Op op;
  int64_t source, has_cls;   // ScoreSource
  int64_t policy, keep_cls;  // SelectionPolicy
  int64_t B, S, C, H, D, k, m;
  int64_t mode;                               // MergeMode
  int64_t key_dtype, attention_dtype, dtype;  // DType; the last: of x
  double scale;
  int64_t keys;        // (B, H, S, D)
  int64_t queries;     // (B, H, S, D)
  int64_t lse;         // (B, H, S)
  int64_t attention;   // (B, S), (B, H, S) or (B, H, S, S)
  int64_t x;           // (B, S, C): hidden or x; of merge_backward the gradient (B, k + m, C)
  int64_t indices;     // (B, k): written by kZip and kSelect
  int64_t assignment;  // (B, S): as well; given to the others
  int64_t out;         // (B, k + m, C); of merge_backward (B, S, C)
};

}  // namespace visionzip::instruction_set_tests

// Computes a Call, in its block.
extern "C" __attribute__((visibility("default"))) void visionzip_run_call(void* block);
