// One image's way through scoring, selection, assignment and merging, cut into phases that can be shared by threads.
#pragma once

#include <vector>

#include "cpu/kernels/buffer.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/selection.h"
#include "cpu/plan/plan.h"

namespace visionzip::cpu {

// What all images of a call have in common.  Strides in elements; the pointers are each image's own.
struct CallInputs {
  Problem problem;  // S, k and m are each image's own
  bool decides, merges;
  KeyRows keys;
  AttentionRows attn;  // not for kQueryKey
  int64_t query_head_stride, query_token_stride;
  float scale;
  int64_t lse_head_stride;
  DType dtype;  // of what is merged
  int64_t token_stride;
  MergeMode mode;
};

struct ImageInputs {
  int64_t S, k, m;
  const void *keys, *attn, *queries;
  const float* lse;     // or null
  int64_t* indices;     // (k)
  int64_t* assignment;  // (S): read and not written where the call only merges
  const void* x;        // (S, C)
  void* out;            // (k + m, C)
  DecisionPlace place;
};

// Phases, in order: read_keys, sum_columns, decide, assign, merge.  Each takes a range of its units (tokens, sums,
// ...); ranges of one phase may run at the same time, phases may not.
class Image {
 public:
  explicit Image(const CallInputs& call) : call_(call), p_(call.problem), kernels_(kernels()) {}

  // sharing: as in plan_image.  The object may be used for one image after another.
  void start(const ImageInputs& image, int64_t sharing, int64_t threads);

  int64_t token_grain() const { return plan_.key_tokens; }
  int64_t key_units() const { return call_.decides ? p_.S : 0; }
  void read_keys(int64_t begin, int64_t end);

  int64_t sum_units() const;
  int64_t sum_work() const { return 1 + p_.S; }  // of one unit, as compared with another image's
  void sum_columns(int64_t begin, int64_t end);

  int64_t decide_units() const { return 1; }
  int64_t decide_work() const { return 1 + p_.S; }
  void decide(int64_t begin, int64_t end);  // throws std::runtime_error where a given assignment is no decision

  int64_t assign_units() const { return call_.decides ? static_cast<int64_t>(selection_.merged.size()) : 0; }
  int64_t assign_work() const { return 1 + p_.m; }
  void assign(int64_t begin, int64_t end);

  int64_t merge_units();  // (share of the rows, slice of the channels); needs the assignment
  int64_t merge_work() const { return 1 + p_.S / (static_cast<int64_t>(shares_.size()) * slices()); }
  void merge(int64_t begin, int64_t end);

 private:
  bool from_queries() const { return p_.source == ScoreSource::kQueryKey; }
  int64_t cells() const { return p_.S * p_.group; }
  float* cell_scores() { return p_.group > 1 ? cell_scores_.get() : scores_.get(); }
  void widen_query();
  void add_up_cells(MetricTask task, int64_t begin, int64_t end);
  void score();
  void write_decision();
  void sum_attention(int64_t begin, int64_t end);
  void sum_heads(int64_t begin, int64_t end);
  void add_up_heads();
  int64_t slices() const { return (p_.C + slice_channels_ - 1) / slice_channels_; }
  std::vector<int64_t> tokens_of(const RowShare& rows) const;
  // The target that a token was merged into.
  int64_t target_of(int64_t token) const { return in_.assignment[token] - in_.place.first_row - p_.k; }

  const CallInputs& call_;
  Problem p_;  // this image's
  ImagePlan plan_{};
  bool shared_ = false;
  ImageInputs in_{};
  const Kernels& kernels_;
  Buffer metric_, query_, logits_, scores_, cell_scores_, head_sums_, directions_;
  Selection selection_;
  std::vector<int64_t> counts_;   // (m): tokens merged into each target
  std::vector<RowShare> shares_;  // of all output rows
  int64_t slice_channels_ = 0;
};

}  // namespace visionzip::cpu
