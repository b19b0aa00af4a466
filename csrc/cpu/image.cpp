#include "image.h"

#include <algorithm>

namespace visionzip::cpu {

namespace {

const void* advance(const void* p, int64_t elements, DType dtype) {
  return static_cast<const char*>(p) + elements * static_cast<int64_t>(size_of(dtype));
}

constexpr int64_t kColumnsAtOnce = 64;  // columns of an attention matrix that one unit of `sum_columns` adds up

int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// All output rows in so many shares of about equal work: rows that are read and written.  Whole rows, because a thread
// then walks through its own pages only (577 x 1024 float32 from memory by two threads: 99 us, by halves of each row
// 122 us).  None where a few targets take most of the tokens, so that shares would differ much.
std::vector<RowShare> share_rows(const std::vector<int64_t>& counts, int64_t k, int64_t parts) {
  const auto m = static_cast<int64_t>(counts.size());
  constexpr int64_t kRow = 2;  // read and written; a target's tokens are only read
  int64_t total = kRow * (k + m), done = 0, largest = 0;
  for (const int64_t count : counts) total += count;
  std::vector<RowShare> shares;
  RowShare rows{};
  for (int64_t part = 1; part <= parts; part++) {
    const int64_t before = done, goal = total * part / parts;
    rows.target_begin = rows.target_end;
    while (rows.target_end < m && done + counts[static_cast<size_t>(rows.target_end)] + kRow <= goal) {
      done += counts[static_cast<size_t>(rows.target_end++)] + kRow;
    }
    rows.kept_begin = rows.kept_end;  // kept rows fill up what the targets left
    rows.kept_end += std::min((goal - done) / kRow, k - rows.kept_begin);
    done += kRow * (rows.kept_end - rows.kept_begin);
    largest = std::max(largest, done - before);
    shares.push_back(rows);
  }
  constexpr double kMostAboveMean = 1.25;
  if (parts > 1 && static_cast<double>(largest * parts) > kMostAboveMean * static_cast<double>(total)) shares.clear();
  return shares;
}

}  // namespace

void Image::start(int64_t image) {
  image_ = image;
  if (!decision_) return;
  const KeyRows& keys = decision_->keys;
  metric_.floats(p_.S * p_.D);
  scores_.floats(p_.S);
  if (!from_queries()) return;
  if (p_.has_cls) {
    float* logits = logits_.floats(p_.H * p_.S);
    if (p_.D == 0) std::fill_n(logits, p_.H * p_.S, 0.f);  // no channel ever writes them
    float* query = query_.floats(p_.H * p_.D);
    for (int64_t h = 0; h < p_.H; h++) {
      const int64_t at = image * decision_->query_image_stride + h * decision_->query_head_stride;
      kernels_.widen(advance(decision_->queries, at, keys.dtype), keys.dtype, p_.D, query + h * p_.D);
    }
  } else {
    head_sums_.floats(p_.H * plan_.query_chunks * p_.S);
  }
}

void Image::read_keys(int64_t begin, int64_t end) {
  MetricTask task{};
  task.keys = decision_->keys;
  task.keys.keys = advance(task.keys.keys, image_ * decision_->key_image_stride, task.keys.dtype);
  task.metric = metric_.get();
  task.query = from_queries() && p_.has_cls ? query_.get() : nullptr;
  task.logits = logits_.get();
  task.S = p_.S;
  task.scale = decision_->scale;
  kernels_.metric(task, begin, end);
}

// An attention matrix without CLS is read by columns; queries and keys without CLS by heads and chunks of queries.
int64_t Image::sum_units() const {
  if (!decision_ || p_.has_cls) return 0;
  if (from_queries()) return p_.H * plan_.query_chunks;
  return p_.source == ScoreSource::kMatrix ? (p_.S + kColumnsAtOnce - 1) / kColumnsAtOnce : 0;
}

void Image::sum_columns(int64_t begin, int64_t end) {
  if (from_queries()) {
    sum_heads(begin, end);
  } else {
    sum_attention(begin * kColumnsAtOnce, std::min(end * kColumnsAtOnce, p_.S));
  }
}

void Image::sum_attention(int64_t begin, int64_t end) {
  AttentionRows attn = decision_->attn;
  attn.attn = advance(attn.attn, image_ * decision_->attn_image_stride, attn.dtype);
  const float mean = p_.has_cls || p_.source == ScoreSource::kScores
                         ? 1.f
                         : 1.f / (static_cast<float>(attn.heads) * static_cast<float>(attn.rows));
  kernels_.add_rows(attn, mean, scores_.get(), begin, end);
}

void Image::sum_heads(int64_t begin, int64_t end) {
  const DType dtype = decision_->keys.dtype;
  Buffer workspace, chunk_sums;
  float* sums = chunk_sums.floats(kQueryChunks * p_.S);
  workspace.floats(static_cast<int64_t>(kernels_.column_sum_workspace(p_.S, p_.D) / sizeof(float)));
  const int64_t chunks = kQueryChunks / plan_.query_chunks;  // that one unit computes
  for (int64_t unit = begin; unit < end; unit++) {
    const int64_t h = unit / plan_.query_chunks, chunk = unit % plan_.query_chunks * chunks;
    const DecisionInputs& in = *decision_;
    ColumnSumTask task{};
    task.queries = advance(in.queries, image_ * in.query_image_stride + h * in.query_head_stride, dtype);
    task.keys = advance(in.keys.keys, image_ * in.key_image_stride + h * in.keys.head_stride, dtype);
    task.dtype = dtype;
    task.query_stride = in.query_token_stride;
    task.key_stride = in.keys.token_stride;
    task.lse = in.lse ? in.lse + image_ * in.lse_image_stride + h * in.lse_head_stride : nullptr;
    task.S = p_.S;
    task.D = p_.D;
    task.scale = in.scale;
    kernels_.column_sums(task, chunk, chunk + chunks, sums, workspace.get());
    float* out = head_sums_.get() + unit * p_.S;
    std::copy_n(sums, p_.S, out);
    for (int64_t c = 1; c < chunks; c++) {
      for (int64_t j = 0; j < p_.S; j++) out[j] += sums[c * p_.S + j];
    }
  }
}

// Chunks ascending within a head, then heads ascending: the same sums whether a unit was a head or a chunk of it.
void Image::add_up_heads() {
  float* scores = scores_.get();
  const int64_t chunks = plan_.query_chunks;
  std::fill_n(scores, p_.S, 0.f);
  for (int64_t h = 0; h < p_.H; h++) {
    float* head = head_sums_.get() + h * chunks * p_.S;
    for (int64_t c = 1; c < chunks; c++) {
      for (int64_t j = 0; j < p_.S; j++) head[j] += head[c * p_.S + j];
    }
    for (int64_t j = 0; j < p_.S; j++) scores[j] += head[j];
  }
  const float mean = 1.f / (static_cast<float>(p_.H) * static_cast<float>(p_.S));
  for (int64_t j = 0; j < p_.S; j++) scores[j] *= mean;
}

void Image::score() {
  const DecisionInputs& in = *decision_;
  if (from_queries() && p_.has_cls) {
    const float* lse = in.lse ? in.lse + image_ * in.lse_image_stride : nullptr;
    kernels_.softmax_sum(logits_.get(), lse, in.lse_head_stride, p_.H, p_.S, scores_.get());
  } else if (from_queries()) {
    add_up_heads();
  } else if (sum_units() == 0) {
    sum_attention(0, p_.S);
  }
}

void Image::decide(int64_t /*begin*/, int64_t /*end*/) {
  if (!decision_) {
    selection_ = read_decision("merge", merge_->assignment + image_ * p_.S, image_, p_.S, p_.k, p_.m);
    return;
  }
  score();
  selection_ = select_by_score(scores_.get(), p_.S, p_.k, p_.m, p_.has_cls);
  write_decision();
}

void Image::write_decision() {
  int64_t* assignment = decision_->assignment + image_ * p_.S;
  if (p_.m == 0) std::fill_n(assignment, p_.S, int64_t{-1});
  for (int64_t row = 0; row < p_.k; row++) {
    const int64_t token = selection_.kept[static_cast<size_t>(row)];
    decision_->indices[image_ * p_.k + row] = token;
    assignment[token] = row;
  }
  for (int64_t t = 0; t < p_.m; t++) assignment[selection_.targets[static_cast<size_t>(t)]] = p_.k + t;
  float* directions = directions_.floats(round_up(p_.m, kernels_.lanes) * p_.D);
  kernels_.pack_directions(metric_.get(), selection_.targets.data(), p_.m, p_.D, directions);
}

void Image::assign(int64_t begin, int64_t end) {
  AssignTask task{};
  task.metric = metric_.get();
  task.directions = directions_.get();
  task.tokens = selection_.merged.data();
  task.D = p_.D;
  task.m = p_.m;
  task.first_row = p_.k;
  task.assignment = decision_->assignment + image_ * p_.S;
  kernels_.assign(task, begin, end);
}

int64_t Image::merge_units() {
  if (!merge_) return 0;
  const int64_t* assignment = merge_->assignment + image_ * p_.S;
  counts_.assign(static_cast<size_t>(p_.m), 0);
  for (const int64_t token : selection_.merged) counts_[static_cast<size_t>(assignment[token] - p_.k)]++;
  shares_ = share_rows(counts_, p_.k, shared_ ? plan_.row_shares : 1);
  slice_channels_ = plan_.whole_channels;
  if (shares_.empty()) {
    shares_ = share_rows(counts_, p_.k, 1);
    slice_channels_ = plan_.shared_channels;
  }
  return static_cast<int64_t>(shares_.size()) * slices();
}

void Image::merge(int64_t begin, int64_t end) {
  MergeTask task{};
  task.x = advance(merge_->x, image_ * merge_->image_stride, merge_->dtype);
  task.out = const_cast<void*>(advance(merge_->out, image_ * (p_.k + p_.m) * p_.C, merge_->dtype));
  task.dtype = merge_->dtype;
  task.token_stride = merge_->token_stride;
  task.C = p_.C;
  task.k = p_.k;
  task.m = p_.m;
  task.mode = merge_->mode;
  task.kept = selection_.kept.data();
  task.targets = selection_.targets.data();
  task.assignment = merge_->assignment + image_ * p_.S;
  task.counts = counts_.data();
  Buffer sums;
  for (int64_t unit = begin; unit < end; unit++) {
    task.rows = shares_[static_cast<size_t>(unit / slices())];
    const std::vector<int64_t> tokens = tokens_of(task.rows, task.assignment);
    task.tokens = tokens.data();
    task.merged = static_cast<int64_t>(tokens.size());
    const int64_t channel = unit % slices() * slice_channels_, last = std::min(channel + slice_channels_, p_.C);
    kernels_.merge(task, channel, last, sums.floats((task.rows.target_end - task.rows.target_begin) * slice_channels_));
  }
}

std::vector<int64_t> Image::tokens_of(const RowShare& rows, const int64_t* assignment) const {
  std::vector<int64_t> tokens;
  tokens.reserve(selection_.merged.size());
  for (const int64_t token : selection_.merged) {
    const int64_t target = assignment[token] - p_.k;
    if (target >= rows.target_begin && target < rows.target_end) tokens.push_back(token);
  }
  return tokens;
}

}  // namespace visionzip::cpu
