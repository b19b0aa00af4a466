// The phases of an image, each made from the result of the one before it:
//
//   Image -> ReadKeys -> SumColumns -> Select -> Assign -> Merge   zip; without Merge: select
//   Image -> ReadDecision -> Merge                                 merge
//
// A phase is cut into units, which may run in any order and at the same time.  Whoever schedules it (execute.cpp) calls
// run(begin, end) for all of them, and then takes the result.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "cpu/kernels/buffer.h"
#include "cpu/kernels/inputs.h"
#include "cpu/kernels/row_shares.h"

namespace visionzip::cpu {

// Memory for one image at a time, kept for the next.
struct Workspace {
  Buffer metric, query, logits, head_sums, scores, token_scores, units, resemblance, unit, directions;
};

struct Image {
  const CallInputs& call;
  const ImageInputs& in;
  Workspace& workspace;
  Problem problem;
  ImagePlan plan;

  // sharing, threads: as in plan_image.
  Image(const CallInputs& the_call, const ImageInputs& inputs, Workspace& memory, int64_t sharing, int64_t threads)
      : call(the_call),
        in(inputs),
        workspace(memory),
        problem(problem_of(the_call, inputs)),
        plan(plan_image(problem, sharing, threads)) {}

  bool from_queries() const { return problem.source == ScoreSource::kQueryKey; }
  int64_t cells() const { return problem.S * problem.group; }
};

struct Keys {
  Image image;
  const float* metric;  // (S, D)
  float* logits;        // (H, S): the CLS row's; null where there is none
};

// Keys -> metric, and the CLS row's logits.  Units: tokens.
class ReadKeys {
 public:
  explicit ReadKeys(const Image& image);
  int64_t units() const { return image_.problem.S; }
  int64_t least_units() const { return image_.plan.least_tokens; }  // that are worth a thread
  int64_t work() const { return 1; }                                // of one unit, as compared with another image's
  void run(int64_t begin, int64_t end) const;
  Keys result() && { return {image_, metric_, task_.logits}; }

 private:
  void add_up_cells(int64_t begin, int64_t end) const;

  Image image_;
  float* metric_;
  MetricTask task_;
};

struct ColumnSums {
  Keys keys;
  float* heads;        // (H, query_chunks, cells): of softmax(Q K^T); or null
  const float* cells;  // (cells): the means of an attention matrix's columns; or null
};

// Without CLS, each column of the attention matrix is added up.  Units: columns of a given matrix; heads and chunks of
// queries, from queries and keys; none where CLS's row or finished scores are all that counts.
class SumColumns {
 public:
  explicit SumColumns(const Keys& keys);
  int64_t units() const { return units_; }
  int64_t least_units() const { return 1; }
  int64_t work() const { return 1 + sums_.keys.image.problem.S; }
  void run(int64_t begin, int64_t end) const;
  ColumnSums result() && { return sums_; }

 private:
  void sum_heads(int64_t begin, int64_t end) const;

  ColumnSums sums_;
  float* matrix_means_;  // as sums_.cells, to be written
  int64_t units_;
};

struct Selected {
  Keys keys;
  const float* directions;  // of the targets, packed
  Selection selection;
};

// Scores -> the tokens kept, the targets, and their rows in the assignment.  One unit, also where tokens are kept step
// by step: for an image of CLIP a step takes about a microsecond, and a barrier among threads as long.
class Select {
 public:
  explicit Select(const ColumnSums& sums) : sums_(sums) {}
  int64_t units() const { return 1; }
  int64_t least_units() const { return 1; }
  int64_t work() const { return 1 + image().problem.S * std::max<int64_t>(1, steps() * image().problem.D); }
  void run(int64_t begin, int64_t end);
  Selected result() && { return {sums_.keys, directions_, std::move(selection_)}; }

 private:
  const Image& image() const { return sums_.keys.image; }
  int64_t steps() const { return image().problem.policy == SelectionPolicy::kDistinct ? image().problem.k : 0; }
  const float* score_cells() const;
  const float* score_tokens() const;
  void add_up_heads(float* scores) const;
  std::vector<int64_t> keep_tokens(const float* scores) const;
  std::vector<int64_t> keep_distinct(const float* scores, int64_t first, int64_t count) const;
  void write_decision() const;

  ColumnSums sums_;
  const float* directions_ = nullptr;
  Selection selection_;
};

struct Decision {
  Image image;
  Selection selection;
  const int64_t* assignment;  // (S)
};

// Each of the other tokens goes to its nearest target.  Units: those tokens.
class Assign {
 public:
  explicit Assign(Selected&& selected) : selected_(std::move(selected)) {}
  int64_t units() const { return static_cast<int64_t>(selected_.selection.merged.size()); }
  int64_t least_units() const { return image().plan.least_tokens; }
  int64_t work() const { return 1 + image().problem.m; }
  void run(int64_t begin, int64_t end) const;
  Decision result() && { return {image(), std::move(selected_.selection), image().in.assignment}; }

 private:
  const Image& image() const { return selected_.keys.image; }

  Selected selected_;
};

// A decision that is given.  One unit; throws std::runtime_error where it is none.
class ReadDecision {
 public:
  explicit ReadDecision(const Image& image) : image_(image) {}
  int64_t units() const { return 1; }
  int64_t least_units() const { return 1; }
  int64_t work() const { return 1 + image_.problem.S; }
  void run(int64_t begin, int64_t end);
  Decision result() && { return {image_, std::move(selection_), image_.in.assigned}; }

 private:
  Image image_;
  Selection selection_;
};

// The output rows.  Units: a share of the rows, and of their channels a slice.
class Merge {
 public:
  explicit Merge(Decision&& decision);
  int64_t units() const { return static_cast<int64_t>(shares_.size()) * slices(); }
  int64_t least_units() const { return 1; }
  int64_t work() const { return 1 + image().problem.S / units(); }
  void run(int64_t begin, int64_t end) const;
  void result() && {}

 private:
  const Image& image() const { return decision_.image; }
  int64_t slices() const { return (image().problem.C + slice_channels_ - 1) / slice_channels_; }
  size_t target_of(int64_t token) const;
  void sort_by_target();

  Decision decision_;
  std::vector<int64_t> counts_;     // (m): tokens merged into each target
  std::vector<int64_t> by_target_;  // the tokens to merge, by target, ascending for each
  std::vector<int64_t> first_of_;   // (m + 1): where each target's begin there
  std::vector<RowShare> shares_;    // of all output rows
  int64_t slice_channels_;
};

}  // namespace visionzip::cpu
