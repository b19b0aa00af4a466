// One image's way through scoring, selection, assignment and merging, cut into phases that can be shared by threads.
#pragma once

#include <vector>

#include "buffer.h"
#include "kernels.h"
#include "selection.h"
#include "visionzip/plan.h"

namespace visionzip::cpu {

// What the operators were given, for all images.  Strides in elements.
struct DecisionInputs {
  KeyRows keys;
  int64_t key_image_stride;
  AttentionRows attn;  // not for kQueryKey
  int64_t attn_image_stride;
  const void* queries;  // kQueryKey only
  int64_t query_image_stride, query_head_stride, query_token_stride;
  float scale;
  const float* lse;  // or null
  int64_t lse_image_stride, lse_head_stride;
  int64_t* indices;     // (B, k)
  int64_t* assignment;  // (B, S)
};

struct MergeInputs {
  const void* x;
  DType dtype;
  int64_t image_stride, token_stride;
  void* out;                  // (B, k + m, C)
  const int64_t* assignment;  // (B, S)
  MergeMode mode;
};

// Phases, in order: read_keys, sum_columns, decide, assign, merge.  Each takes a range of its units (tokens, sums,
// ...); ranges of one phase may run at the same time, phases may not.
class Image {
 public:
  // shared: by all threads, phase by phase; otherwise one thread does it all.
  Image(const Problem& problem, const CpuPlan& plan, bool shared, const DecisionInputs* decision,
        const MergeInputs* merge)
      : p_(problem), plan_(plan), shared_(shared), decision_(decision), merge_(merge), kernels_(kernels()) {}

  void start(int64_t image);  // the object may be used for one image after another

  int64_t key_units() const { return decision_ ? p_.S : 0; }
  void read_keys(int64_t begin, int64_t end);

  int64_t sum_units() const;
  void sum_columns(int64_t begin, int64_t end);

  int64_t decide_units() const { return 1; }
  void decide(int64_t begin, int64_t end);  // throws std::runtime_error where a given assignment is no decision

  int64_t assign_units() const { return decision_ ? static_cast<int64_t>(selection_.merged.size()) : 0; }
  void assign(int64_t begin, int64_t end);

  int64_t merge_units();  // (share of the rows, slice of the channels); needs the assignment
  void merge(int64_t begin, int64_t end);

 private:
  bool from_queries() const { return p_.source == ScoreSource::kQueryKey; }
  void score();
  void write_decision();
  void sum_attention(int64_t begin, int64_t end);
  void sum_heads(int64_t begin, int64_t end);
  void add_up_heads();
  int64_t slices() const { return (p_.C + slice_channels_ - 1) / slice_channels_; }
  std::vector<int64_t> tokens_of(const RowShare& rows, const int64_t* assignment) const;

  const Problem& p_;
  const CpuPlan& plan_;
  bool shared_;
  const DecisionInputs* decision_;  // null for `merge`
  const MergeInputs* merge_;        // null for `select`
  const Kernels& kernels_;
  int64_t image_ = 0;
  Buffer metric_, query_, logits_, scores_, head_sums_, directions_;
  Selection selection_;
  std::vector<int64_t> counts_;   // (m): tokens merged into each target
  std::vector<RowShare> shares_;  // of all output rows
  int64_t slice_channels_ = 0;
};

}  // namespace visionzip::cpu
