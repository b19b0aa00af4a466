#include "cpu/kernels/phases.h"

#include <algorithm>
#include <numeric>

#include "common/rounding.h"

namespace visionzip::cpu {

namespace {

constexpr int64_t kColumnsAtOnce = 64;  // columns of an attention matrix that one unit of SumColumns adds up

const void* advance(const void* p, int64_t elements, DType dtype) {
  return static_cast<const char*>(p) + elements * static_cast<int64_t>(size_of(dtype));
}

// CLS's query (H, D) as float32.
const float* widen_query(const Image& image) {
  const int64_t H = image.problem.H, D = image.problem.D;
  const DType dtype = image.call.keys.dtype;
  float* query = image.workspace.query.floats(H * D);
  for (int64_t h = 0; h < H; h++) {
    kernels().widen(advance(image.in.queries, h * image.call.query_head_stride, dtype), dtype, D, query + h * D);
  }
  return query;
}

// Columns [begin, end) of attention that is given: of CLS's row or of finished scores the sum, else the mean.
void average_attention(const Image& image, float* cells, int64_t begin, int64_t end) {
  AttentionRows attn = image.call.attn;
  attn.attn = image.in.attn;
  attn.S = image.cells();
  const bool sum = image.problem.has_cls || image.problem.source == ScoreSource::kScores;
  const float mean = 1.f / (static_cast<float>(attn.heads) * static_cast<float>(attn.rows));
  kernels().add_rows(attn, sum ? 1.f : mean, cells, begin, end);
}

}  // namespace

// ---- ReadKeys -------------------------------------------------------------------------------------------------------

ReadKeys::ReadKeys(const Image& image)
    : image_(image), metric_(image.workspace.metric.floats(image.problem.S * image.problem.D)), task_{} {
  const Problem& p = image.problem;
  task_.keys = image.call.keys;
  task_.keys.keys = image.in.keys;
  task_.metric = metric_;
  task_.S = p.S;
  task_.scale = image.call.scale;
  if (!image.from_queries() || !p.has_cls) return;
  task_.query = widen_query(image);
  task_.logits = image.workspace.logits.floats(p.H * p.S);
  if (p.D == 0) std::fill_n(task_.logits, p.H * p.S, 0.f);  // no channel ever writes them
}

void ReadKeys::run(int64_t begin, int64_t end) const {
  if (image_.problem.group == 1) {
    kernels().metric(task_, begin, end);
  } else {
    add_up_cells(begin, end);
  }
}

// A token's key, up to its length: the sum of its cells' keys, in ascending order.
void ReadKeys::add_up_cells(int64_t begin, int64_t end) const {
  const int64_t group = image_.problem.group, D = image_.problem.D;
  Buffer of_cells;
  MetricTask task = task_;
  task.metric = of_cells.floats(group * D);
  for (int64_t token = begin; token < end; token++) {
    task.keys.keys = advance(task_.keys.keys, token * group * task.keys.token_stride, task.keys.dtype);
    kernels().metric(task, 0, group);
    float* metric = metric_ + token * D;
    std::copy_n(task.metric, D, metric);
    for (int64_t cell = 1; cell < group; cell++) {
      for (int64_t d = 0; d < D; d++) metric[d] += task.metric[cell * D + d];
    }
  }
}

// ---- SumColumns -----------------------------------------------------------------------------------------------------

SumColumns::SumColumns(const Keys& keys) : sums_{keys, nullptr, nullptr}, matrix_means_(nullptr), units_(0) {
  const Image& image = keys.image;
  if (image.problem.has_cls) return;
  if (image.from_queries()) {
    units_ = image.problem.H * image.plan.query_chunks;
    sums_.heads = image.workspace.head_sums.floats(units_ * image.cells());
  } else if (image.problem.source == ScoreSource::kMatrix) {
    units_ = (image.cells() + kColumnsAtOnce - 1) / kColumnsAtOnce;
    sums_.cells = matrix_means_ = image.workspace.scores.floats(image.cells());
  }
}

void SumColumns::run(int64_t begin, int64_t end) const {
  const Image& image = sums_.keys.image;
  if (image.from_queries()) return sum_heads(begin, end);
  average_attention(image, matrix_means_, begin * kColumnsAtOnce, std::min(end * kColumnsAtOnce, image.cells()));
}

void SumColumns::sum_heads(int64_t begin, int64_t end) const {
  const Image& image = sums_.keys.image;
  const CallInputs& call = image.call;
  const DType dtype = call.keys.dtype;
  const int64_t S = image.cells(), D = image.problem.D, shares = image.plan.query_chunks;
  const int64_t chunks = kQueryChunks / shares;  // that one unit computes
  Buffer workspace, chunk_sums;
  float* sums = chunk_sums.floats(kQueryChunks * S);
  workspace.floats(static_cast<int64_t>(kernels().column_sum_workspace(S, D) / sizeof(float)));
  for (int64_t unit = begin; unit < end; unit++) {
    const int64_t h = unit / shares, chunk = unit % shares * chunks;
    ColumnSumTask task{};
    task.queries = advance(image.in.queries, h * call.query_head_stride, dtype);
    task.keys = advance(image.in.keys, h * call.keys.head_stride, dtype);
    task.dtype = dtype;
    task.query_stride = call.query_token_stride;
    task.key_stride = call.keys.token_stride;
    task.lse = image.in.lse ? image.in.lse + h * call.lse_head_stride : nullptr;
    task.S = S;
    task.D = D;
    task.scale = call.scale;
    kernels().column_sums(task, chunk, chunk + chunks, sums, workspace.get());
    float* out = sums_.heads + unit * S;
    std::copy_n(sums, S, out);
    for (int64_t c = 1; c < chunks; c++) {
      for (int64_t j = 0; j < S; j++) out[j] += sums[c * S + j];
    }
  }
}

// ---- Select ---------------------------------------------------------------------------------------------------------

// Chunks ascending within a head, then heads ascending: the same sums whether a unit was a head or a chunk of it.
void Select::add_up_heads(float* scores) const {
  const int64_t chunks = image().plan.query_chunks, S = image().cells(), H = image().problem.H;
  std::fill_n(scores, S, 0.f);
  for (int64_t h = 0; h < H; h++) {
    float* head = sums_.heads + h * chunks * S;
    for (int64_t c = 1; c < chunks; c++) {
      for (int64_t j = 0; j < S; j++) head[j] += head[c * S + j];
    }
    for (int64_t j = 0; j < S; j++) scores[j] += head[j];
  }
  const float mean = 1.f / (static_cast<float>(H) * static_cast<float>(S));
  for (int64_t j = 0; j < S; j++) scores[j] *= mean;
}

const float* Select::score_cells() const {
  if (sums_.cells) return sums_.cells;
  const Problem& p = image().problem;
  float* scores = image().workspace.scores.floats(image().cells());
  if (sums_.heads) {
    add_up_heads(scores);
  } else if (sums_.keys.logits) {
    kernels().softmax_sum(sums_.keys.logits, image().in.lse, image().call.lse_head_stride, p.H, p.S, scores);
  } else {
    average_attention(image(), scores, 0, image().cells());
  }
  return scores;
}

// A token's score: the sum of its cells', in ascending order.
const float* Select::score_tokens() const {
  const float* of_cells = score_cells();
  const Problem& p = image().problem;
  if (p.group == 1) return of_cells;
  float* scores = image().workspace.token_scores.floats(p.S);
  for (int64_t j = 0; j < p.S; j++) {
    float sum = of_cells[j * p.group];
    for (int64_t cell = 1; cell < p.group; cell++) sum += of_cells[j * p.group + cell];
    scores[j] = sum;
  }
  return scores;
}

// `count` of the tokens from `first` on, in the order in which they are taken.
std::vector<int64_t> Select::keep_distinct(const float* scores, int64_t first, int64_t count) const {
  const int64_t S = image().problem.S, D = image().problem.D, candidates = S - first;
  const int64_t padded = round_up(candidates, kernels().lanes);
  Workspace& workspace = image().workspace;
  std::vector<int64_t> kept(static_cast<size_t>(count));
  DistinctTask task{};
  float* units = workspace.units.floats(padded * D);
  kernels().pack_units(sums_.keys.metric + first * D, candidates, D, units);
  task.units = units;
  task.scores = scores + first;
  task.candidates = candidates;
  task.D = D;
  task.count = count;
  task.resemblance = workspace.resemblance.floats(padded);
  task.unit = workspace.unit.floats(D);
  task.kept = kept.data();
  kernels().keep_distinct(task);
  return kept;
}

// Ascending.
std::vector<int64_t> Select::keep_tokens(const float* scores) const {
  const Problem& p = image().problem;
  const int64_t first = p.has_cls ? 1 : 0, cls = p.has_cls && p.keep_cls ? 1 : 0;
  std::vector<int64_t> kept = p.policy == SelectionPolicy::kDistinct
                                  ? keep_distinct(scores, first, p.k - cls)
                                  : highest_scores(scores + first, p.S - first, p.k - cls);
  for (int64_t& token : kept) token += first;
  if (cls) kept.push_back(0);
  std::sort(kept.begin(), kept.end());
  return kept;
}

void Select::run(int64_t /*begin*/, int64_t /*end*/) {
  const Problem& p = image().problem;
  selection_ = split_tokens(keep_tokens(score_tokens()), p.S, p.m, p.keep_cls);
  write_decision();
  float* directions = image().workspace.directions.floats(round_up(p.m, kernels().lanes) * p.D);
  kernels().pack_directions(sums_.keys.metric, selection_.targets.data(), p.m, p.D, directions);
  directions_ = directions;
}

void Select::write_decision() const {
  const Problem& p = image().problem;
  const ImageInputs& in = image().in;
  if (p.m == 0) {
    std::fill_n(in.assignment, p.S, int64_t{-1});
  } else if (!p.keep_cls) {
    in.assignment[0] = -1;
  }
  for (int64_t row = 0; row < p.k; row++) {
    const int64_t token = selection_.kept[static_cast<size_t>(row)];
    in.indices[row] = in.place.first_token + token;
    in.assignment[token] = in.place.first_row + row;
  }
  for (int64_t t = 0; t < p.m; t++) {
    in.assignment[selection_.targets[static_cast<size_t>(t)]] = in.place.first_row + p.k + t;
  }
}

// ---- Assign, ReadDecision -------------------------------------------------------------------------------------------

void Assign::run(int64_t begin, int64_t end) const {
  const Problem& p = image().problem;
  AssignTask task{};
  task.metric = selected_.keys.metric;
  task.directions = selected_.directions;
  task.tokens = selected_.selection.merged.data();
  task.D = p.D;
  task.m = p.m;
  task.first_row = image().in.place.first_row + p.k;
  task.assignment = image().in.assignment;
  kernels().assign(task, begin, end);
}

void ReadDecision::run(int64_t /*begin*/, int64_t /*end*/) {
  const Problem& p = image_.problem;
  selection_ = read_decision(image_.in.place, image_.in.assigned, p.S, p.k, p.m);
}

// ---- Merge ----------------------------------------------------------------------------------------------------------

Merge::Merge(Decision&& decision)
    : decision_(std::move(decision)),
      counts_(static_cast<size_t>(image().problem.m)),
      slice_channels_(image().plan.whole_channels) {
  for (const int64_t token : decision_.selection.merged) counts_[target_of(token)]++;
  sort_by_target();
  shares_ = share_rows(counts_, image().problem.k, image().plan.row_shares);
  if (shares_.empty()) {
    shares_ = share_rows(counts_, image().problem.k, 1);
    slice_channels_ = image().plan.shared_channels;
  }
}

// The target that a token is merged into.
size_t Merge::target_of(int64_t token) const {
  return static_cast<size_t>(decision_.assignment[token] - image().in.place.first_row - image().problem.k);
}

void Merge::sort_by_target() {
  first_of_.resize(counts_.size() + 1);
  std::partial_sum(counts_.begin(), counts_.end(), first_of_.begin() + 1);
  by_target_.resize(decision_.selection.merged.size());
  std::vector<int64_t> next(first_of_);
  for (const int64_t token : decision_.selection.merged) {
    by_target_[static_cast<size_t>(next[target_of(token)]++)] = token;
  }
}

void Merge::run(int64_t begin, int64_t end) const {
  const CallInputs& call = image().call;
  const Problem& p = image().problem;
  MergeTask task{};
  task.x = image().in.x;
  task.out = image().in.out;
  task.dtype = call.dtype;
  task.token_stride = call.token_stride;
  task.C = p.C;
  task.k = p.k;
  task.m = p.m;
  task.mode = call.mode;
  task.kept = decision_.selection.kept.data();
  task.targets = decision_.selection.targets.data();
  task.counts = counts_.data();
  Buffer sum;
  for (int64_t unit = begin; unit < end; unit++) {
    task.rows = shares_[static_cast<size_t>(unit / slices())];
    const int64_t first = first_of_[static_cast<size_t>(task.rows.target_begin)];
    task.tokens = by_target_.data() + first;
    task.merged = first_of_[static_cast<size_t>(task.rows.target_end)] - first;
    const int64_t channel = unit % slices() * slice_channels_, last = std::min(channel + slice_channels_, p.C);
    kernels().merge(task, channel, last, sum.floats(slice_channels_));
  }
}

}  // namespace visionzip::cpu
