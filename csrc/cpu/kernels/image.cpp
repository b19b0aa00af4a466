#include "cpu/kernels/image.h"

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

void Image::start(const ImageInputs& image, int64_t sharing, int64_t threads) {
  in_ = image;
  p_.S = image.S;
  p_.k = image.k;
  p_.m = image.m;
  plan_ = plan_image(p_, sharing, threads);
  shared_ = sharing > 0;
  if (!call_.decides) return;
  metric_.floats(p_.S * p_.D);
  scores_.floats(p_.S);
  if (p_.group > 1) cell_scores_.floats(cells());
  if (from_queries() && p_.has_cls) widen_query();
  if (from_queries() && !p_.has_cls) head_sums_.floats(p_.H * plan_.query_chunks * cells());
}

void Image::widen_query() {
  float* logits = logits_.floats(p_.H * p_.S);
  if (p_.D == 0) std::fill_n(logits, p_.H * p_.S, 0.f);  // no channel ever writes them
  float* query = query_.floats(p_.H * p_.D);
  const DType dtype = call_.keys.dtype;
  for (int64_t h = 0; h < p_.H; h++) {
    kernels_.widen(advance(in_.queries, h * call_.query_head_stride, dtype), dtype, p_.D, query + h * p_.D);
  }
}

void Image::read_keys(int64_t begin, int64_t end) {
  MetricTask task{};
  task.keys = call_.keys;
  task.keys.keys = in_.keys;
  task.metric = metric_.get();
  task.query = from_queries() && p_.has_cls ? query_.get() : nullptr;
  task.logits = logits_.get();
  task.S = p_.S;
  task.scale = call_.scale;
  if (p_.group == 1) {
    kernels_.metric(task, begin, end);
  } else {
    add_up_cells(task, begin, end);
  }
}

// A token's key, up to its length: the sum of its cells' keys, in ascending order.
void Image::add_up_cells(MetricTask task, int64_t begin, int64_t end) {
  Buffer of_cells;
  task.metric = of_cells.floats(p_.group * p_.D);
  for (int64_t token = begin; token < end; token++) {
    task.keys.keys = advance(in_.keys, token * p_.group * task.keys.token_stride, task.keys.dtype);
    kernels_.metric(task, 0, p_.group);
    float* metric = metric_.get() + token * p_.D;
    std::copy_n(task.metric, p_.D, metric);
    for (int64_t cell = 1; cell < p_.group; cell++) {
      for (int64_t d = 0; d < p_.D; d++) metric[d] += task.metric[cell * p_.D + d];
    }
  }
}

// An attention matrix without CLS is read by columns; queries and keys without CLS by heads and chunks of queries.
int64_t Image::sum_units() const {
  if (!call_.decides || p_.has_cls) return 0;
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
  AttentionRows attn = call_.attn;
  attn.attn = in_.attn;
  attn.S = cells();
  if (p_.source == ScoreSource::kMatrix && !p_.has_cls) attn.rows = p_.S;
  const float mean = p_.has_cls || p_.source == ScoreSource::kScores
                         ? 1.f
                         : 1.f / (static_cast<float>(attn.heads) * static_cast<float>(attn.rows));
  kernels_.add_rows(attn, mean, cell_scores(), begin, end);
}

void Image::sum_heads(int64_t begin, int64_t end) {
  const DType dtype = call_.keys.dtype;
  const int64_t S = cells();
  Buffer workspace, chunk_sums;
  float* sums = chunk_sums.floats(kQueryChunks * S);
  workspace.floats(static_cast<int64_t>(kernels_.column_sum_workspace(S, p_.D) / sizeof(float)));
  const int64_t chunks = kQueryChunks / plan_.query_chunks;  // that one unit computes
  for (int64_t unit = begin; unit < end; unit++) {
    const int64_t h = unit / plan_.query_chunks, chunk = unit % plan_.query_chunks * chunks;
    ColumnSumTask task{};
    task.queries = advance(in_.queries, h * call_.query_head_stride, dtype);
    task.keys = advance(in_.keys, h * call_.keys.head_stride, dtype);
    task.dtype = dtype;
    task.query_stride = call_.query_token_stride;
    task.key_stride = call_.keys.token_stride;
    task.lse = in_.lse ? in_.lse + h * call_.lse_head_stride : nullptr;
    task.S = S;
    task.D = p_.D;
    task.scale = call_.scale;
    kernels_.column_sums(task, chunk, chunk + chunks, sums, workspace.get());
    float* out = head_sums_.get() + unit * S;
    std::copy_n(sums, S, out);
    for (int64_t c = 1; c < chunks; c++) {
      for (int64_t j = 0; j < S; j++) out[j] += sums[c * S + j];
    }
  }
}

// Chunks ascending within a head, then heads ascending: the same sums whether a unit was a head or a chunk of it.
void Image::add_up_heads() {
  float* scores = cell_scores();
  const int64_t chunks = plan_.query_chunks, S = cells();
  std::fill_n(scores, S, 0.f);
  for (int64_t h = 0; h < p_.H; h++) {
    float* head = head_sums_.get() + h * chunks * S;
    for (int64_t c = 1; c < chunks; c++) {
      for (int64_t j = 0; j < S; j++) head[j] += head[c * S + j];
    }
    for (int64_t j = 0; j < S; j++) scores[j] += head[j];
  }
  const float mean = 1.f / (static_cast<float>(p_.H) * static_cast<float>(S));
  for (int64_t j = 0; j < S; j++) scores[j] *= mean;
}

void Image::score() {
  if (from_queries() && p_.has_cls) {
    kernels_.softmax_sum(logits_.get(), in_.lse, call_.lse_head_stride, p_.H, p_.S, scores_.get());
  } else if (from_queries()) {
    add_up_heads();
  } else if (sum_units() == 0) {
    sum_attention(0, cells());
  }
  if (p_.group == 1) return;
  const float* of_cells = cell_scores();
  for (int64_t j = 0; j < p_.S; j++) {
    float sum = of_cells[j * p_.group];
    for (int64_t cell = 1; cell < p_.group; cell++) sum += of_cells[j * p_.group + cell];
    scores_.get()[j] = sum;
  }
}

void Image::decide(int64_t /*begin*/, int64_t /*end*/) {
  if (!call_.decides) {
    selection_ = read_decision(in_.place, in_.assignment, p_.S, p_.k, p_.m);
    return;
  }
  score();
  selection_ = select_by_score(scores_.get(), p_.S, p_.k, p_.m, p_.has_cls);
  write_decision();
}

void Image::write_decision() {
  const int64_t first_row = in_.place.first_row;
  if (p_.m == 0) std::fill_n(in_.assignment, p_.S, int64_t{-1});
  for (int64_t row = 0; row < p_.k; row++) {
    const int64_t token = selection_.kept[static_cast<size_t>(row)];
    in_.indices[row] = in_.place.first_token + token;
    in_.assignment[token] = first_row + row;
  }
  for (int64_t t = 0; t < p_.m; t++) in_.assignment[selection_.targets[static_cast<size_t>(t)]] = first_row + p_.k + t;
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
  task.first_row = in_.place.first_row + p_.k;
  task.assignment = in_.assignment;
  kernels_.assign(task, begin, end);
}

int64_t Image::merge_units() {
  if (!call_.merges) return 0;
  counts_.assign(static_cast<size_t>(p_.m), 0);
  for (const int64_t token : selection_.merged) counts_[static_cast<size_t>(target_of(token))]++;
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
  task.x = in_.x;
  task.out = in_.out;
  task.dtype = call_.dtype;
  task.token_stride = call_.token_stride;
  task.C = p_.C;
  task.k = p_.k;
  task.m = p_.m;
  task.mode = call_.mode;
  task.kept = selection_.kept.data();
  task.targets = selection_.targets.data();
  task.assignment = in_.assignment;
  task.first_row = in_.place.first_row;
  task.counts = counts_.data();
  Buffer sums;
  for (int64_t unit = begin; unit < end; unit++) {
    task.rows = shares_[static_cast<size_t>(unit / slices())];
    const std::vector<int64_t> tokens = tokens_of(task.rows);
    task.tokens = tokens.data();
    task.merged = static_cast<int64_t>(tokens.size());
    const int64_t channel = unit % slices() * slice_channels_, last = std::min(channel + slice_channels_, p_.C);
    kernels_.merge(task, channel, last, sums.floats((task.rows.target_end - task.rows.target_begin) * slice_channels_));
  }
}

std::vector<int64_t> Image::tokens_of(const RowShare& rows) const {
  std::vector<int64_t> tokens;
  tokens.reserve(selection_.merged.size());
  for (const int64_t token : selection_.merged) {
    const int64_t target = target_of(token);
    if (target >= rows.target_begin && target < rows.target_end) tokens.push_back(token);
  }
  return tokens;
}

}  // namespace visionzip::cpu
