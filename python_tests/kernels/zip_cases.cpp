// The fused kernel: every path and team, the same bits on all of them, and right against float64.
#include <algorithm>
#include <numeric>

#include "zip_launch.h"

namespace visionzip::kernel_tests {

namespace {

using cuda::Path;

struct Case {
  int32_t B, S, C, H, D, k, m;
  bool from_queries, has_cls, from_matrix;
  int32_t multiprocessors, shared_bytes;  // of the GPU that is planned for
  DType dtype;
  MergeMode mode;
  SelectionPolicy policy;
  bool keep_cls;

  bool keeps(int s) const { return has_cls && keep_cls && s == 0; }
  bool is_candidate(int s) const { return !has_cls || s > 0; }

  std::string text() const {
    std::string sizes;
    for (const int32_t size : {B, S, C, H, D, k, m}) sizes += " " + std::to_string(size);
    return std::string(from_queries ? "zip_qk" : "zip") + ": B S C H D k m" + sizes +
           (!has_cls   ? ", "
            : keep_cls ? ", CLS, "
                       : ", CLS without a row, ") +
           (policy == SelectionPolicy::kDistinct ? "distinct, " : "") + (from_matrix ? "attention matrix, " : "") +
           name_of(dtype) + ", " + name_of(mode);
  }
};

struct Inputs {
  Elements hidden, keys, queries, attn;
};

struct Results {
  Elements tokens;
  std::vector<int64_t> indices, assignment;

  explicit Results(const Case& c)
      : tokens(c.dtype, int64_t{c.B} * (c.k + c.m) * c.C),
        indices(static_cast<size_t>(c.B * c.k), -7),
        assignment(static_cast<size_t>(c.B * c.S), -7) {}

  bool operator==(const Results& other) const {
    return indices == other.indices && assignment == other.assignment &&
           std::memcmp(tokens.data(), other.tokens.data(), tokens.bytes()) == 0;
  }
};

cuda::ZipProblem problem_of(const Case& c) {
  return {.dtype = c.dtype,
          .source = c.from_queries  ? ScoreSource::kQueryKey
                    : c.from_matrix ? ScoreSource::kMatrix
                                    : ScoreSource::kRows,
          .has_cls = c.has_cls,
          .has_lse = false,
          .has_hidden = true,
          .packed = false,
          .mode = c.mode,
          .scale = 1 / std::sqrt(static_cast<float>(c.D)),
          .S = c.S,
          .k = c.k,
          .m = c.m,
          .C = c.C,
          .H = c.H,
          .D = c.D,
          .attn_heads = c.H,
          .group = 1,
          .images = c.B,
          .all_tokens = int64_t{c.B} * c.S,
          .policy = c.policy,
          .keep_cls = c.keep_cls};
}

// Queries and keys as attention has them: (B, S, H, D), transposed.
cuda::ZipTensors tensors_of(const Case& c, const Inputs& in, Results& out) {
  cuda::ZipTensors t{};
  t.hidden = in.hidden.data();
  t.keys = in.keys.data();
  t.queries = c.from_queries ? in.queries.data() : nullptr;
  t.attn = c.from_queries ? nullptr : in.attn.data();
  t.attn_dtype = c.dtype;
  t.tokens = out.tokens.data();
  t.indices = out.indices.data();
  t.assignment = out.assignment.data();
  t.hidden_image = int64_t{c.S} * c.C;
  t.hidden_token = c.C;
  t.key_image = t.query_image = int64_t{c.S} * c.H * c.D;
  t.key_token = t.query_token = int64_t{c.H} * c.D;
  t.key_head = t.query_head = c.D;
  t.attn_row = c.S;
  t.attn_head = int64_t{c.from_matrix ? c.S : 1} * c.S;
  t.attn_image = c.H * t.attn_head;
  t.wide_keys = t.wide_queries = static_cast<size_t>(c.D) * size_of(c.dtype) % 16 == 0;
  return t;
}

void launch(const Case& c, const Inputs& in, Results& out, const cuda::ForcedLaunch& by) {
  cuda::Gpu gpu{};
  cuda::describe_gpu(gpu);
  cuda::assume_clusters(gpu);  // all of them, however few multiprocessors a case has
  gpu.multiprocessors = c.multiprocessors;
  gpu.block_shared_bytes = std::min(gpu.block_shared_bytes, c.shared_bytes);
  launch_by(problem_of(c), tensors_of(c, in, out), gpu, by, int64_t{c.B} * (c.k + c.m), c.text());
}

// --- float64 ---

double key(const Case& c, const Inputs& in, int b, int h, int s, int d) {
  return in.keys[((int64_t{b} * c.S + s) * c.H + h) * c.D + d];
}

std::vector<double> scores_of(const Case& c, const Inputs& in, int b) {
  std::vector<double> scores(static_cast<size_t>(c.S));
  for (int h = 0; h < c.H; h++) {
    std::vector<double> row(static_cast<size_t>(c.S));
    for (int s = 0; s < c.S; s++) {
      double& x = row[static_cast<size_t>(s)];
      if (!c.from_queries) {
        const int rows = c.from_matrix ? c.S : 1;
        for (int q = 0; q < rows; q++) x += in.attn[((int64_t{b} * c.H + h) * rows + q) * c.S + s];
        continue;
      }
      for (int d = 0; d < c.D; d++) x += in.queries[(int64_t{b} * c.S * c.H + h) * c.D + d] * key(c, in, b, h, s, d);
      x = std::exp(x / std::sqrt(static_cast<double>(c.D)));
    }
    const double total = c.from_queries ? std::accumulate(row.begin(), row.end(), 0.0) : 1;
    for (size_t s = 0; s < row.size(); s++) scores[s] += row[s] / total / c.H;
  }
  return scores;
}

std::vector<double> metric_of(const Case& c, const Inputs& in, int b, int s) {
  std::vector<double> metric(static_cast<size_t>(c.D));
  for (int d = 0; d < c.D; d++) {
    for (int h = 0; h < c.H; h++) metric[static_cast<size_t>(d)] += key(c, in, b, h, s, d) / c.H;
  }
  const double norm = std::sqrt(std::inner_product(metric.begin(), metric.end(), metric.begin(), 0.0));
  for (double& x : metric) x /= norm;
  return metric;
}

// Everything that is chosen must be among the best there is, but for rounding.
constexpr double kNearTie = 1e-5;

bool is_kept(const Case& c, const int64_t* assignment, int s) { return assignment[s] >= 0 && assignment[s] < c.k; }

bool keeps_highest(const Case& c, const Inputs& in, int b, const int64_t* assignment) {
  const std::vector<double> scores = scores_of(c, in, b);
  double worst_kept = 1e300, best_left = -1e300;
  for (int s = 0; s < c.S; s++) {
    const double score = scores[static_cast<size_t>(s)];
    if (!c.is_candidate(s)) continue;
    const bool kept = is_kept(c, assignment, s);
    (kept ? worst_kept : best_left) = kept ? std::min(worst_kept, score) : std::max(best_left, score);
  }
  return worst_kept >= best_left - kNearTie * std::abs(best_left);
}

// Takes the kept tokens again, the best of them first, each of which must be among the best of all.
bool keeps_distinct(const Case& c, const Inputs& in, int b, const int64_t* assignment) {
  const std::vector<double> scores = scores_of(c, in, b);
  std::vector<std::vector<double>> units;
  std::vector<double> resemblance(static_cast<size_t>(c.S));
  std::vector<bool> taken(static_cast<size_t>(c.S));
  for (int s = 0; s < c.S; s++) units.push_back(metric_of(c, in, b, s));
  const int count = c.k - c.keeps(0);
  for (int step = 0; step < count; step++) {
    double best = -1e300, best_kept = -1e300;
    size_t next = 0;
    for (int s = 0; s < c.S; s++) {
      const auto i = static_cast<size_t>(s);
      if (!c.is_candidate(s) || taken[i]) continue;
      const double gain = scores[i] * (1 - resemblance[i]);
      best = std::max(best, gain);
      if (!is_kept(c, assignment, s) || gain <= best_kept) continue;
      best_kept = gain;
      next = i;
    }
    if (best_kept < best - kNearTie * (1 + std::abs(best))) return false;
    taken[next] = true;
    for (size_t i = 0; i < units.size(); i++) {
      const double similarity = std::inner_product(units[i].begin(), units[i].end(), units[next].begin(), 0.0);
      resemblance[i] = std::min(1.0, std::max(resemblance[i], similarity));
    }
  }
  return true;
}

void check_image(const Case& c, const Inputs& in, const Results& out, int b) {
  const auto wrong = [&](const std::string& what) {
    throw std::runtime_error(c.text() + "\nimage " + std::to_string(b) + ": " + what);
  };
  const int64_t* assignment = out.assignment.data() + static_cast<ptrdiff_t>(b) * c.S;
  if (c.has_cls && c.keep_cls != (assignment[0] == 0)) wrong("CLS");
  if (c.policy == SelectionPolicy::kDistinct ? !keeps_distinct(c, in, b, assignment)
                                             : !keeps_highest(c, in, b, assignment)) {
    wrong("a token was kept that is worth less than another");
  }
  for (int j = 0; j < c.k; j++) {
    if (assignment[out.indices[static_cast<size_t>(b * c.k + j)]] != j) wrong("indices and assignment differ");
  }
  const Rows rows = rows_of(assignment, c.S, c.k, c.m);
  for (int row = 0; row < c.k + c.m; row++) {
    if (rows.target[static_cast<size_t>(row)] < 0) wrong("row " + std::to_string(row) + " has no token");
    for (const int64_t s : rows.merged[static_cast<size_t>(row)]) {
      const std::vector<double> own = metric_of(c, in, b, static_cast<int>(s));
      const auto similarity = [&](int to) {
        const auto other = metric_of(c, in, b, static_cast<int>(rows.target[static_cast<size_t>(to)]));
        return std::inner_product(own.begin(), own.end(), other.begin(), 0.0);
      };
      for (int other = c.k; other < c.k + c.m; other++) {
        if (similarity(other) > similarity(row) + kNearTie) wrong("token " + std::to_string(s) + " joined another row");
      }
    }
    for (int channel = 0; channel < c.C; channel++) {
      const auto x = [&](int64_t s) { return in.hidden[(int64_t{b} * c.S + s) * c.C + channel]; };
      const double actual = out.tokens[(int64_t{b} * (c.k + c.m) + row) * c.C + channel];
      if (!is_near(actual, merged_value(rows, row, c.mode, x), c.dtype)) wrong("row " + std::to_string(row));
    }
  }
}

// --- cases ---

// All teams give the bits of the first, which is checked.
int run_case(const Case& c, const std::vector<cuda::ForcedLaunch>& teams, Numbers& numbers) {
  const int64_t key_count = int64_t{c.B} * c.S * c.H * c.D;
  Inputs in{Elements(c.dtype, int64_t{c.B} * c.S * c.C), Elements(c.dtype, key_count), Elements(c.dtype, key_count),
            Elements(c.dtype, int64_t{c.B} * c.H * c.S * (c.from_matrix ? c.S : 1))};
  for (Elements* elements : {&in.hidden, &in.keys, &in.queries, &in.attn}) fill_normal(*elements, numbers);
  Results first(c);
  launch(c, in, first, teams.front());
  for (int b = 0; b < c.B; b++) check_image(c, in, first, b);
  for (size_t i = 1; i < teams.size(); i++) {
    Results other(c);
    launch(c, in, other, teams[i]);
    if (other == first) continue;
    throw std::runtime_error(c.text() + "\nother bits than by " + cuda::to_text(teams[0]) + ": " +
                             cuda::to_text(teams[i]));
  }
  return static_cast<int>(teams.size());
}

}  // namespace

int run_zip_cases() {
  std::vector<cuda::ForcedLaunch> teams{
      {Path::kBlock, 1},         {Path::kCluster, 2},    {Path::kCluster, 4}, {Path::kCluster, 7},  {Path::kCluster, 8},
      {Path::kCluster, 13, 256}, {Path::kCluster, 16},   {Path::kGrid, 2},    {Path::kGrid, 3, 96}, {Path::kGrid, 4},
      {Path::kGrid, 8},          {Path::kBlock, 1, 256}, {Path::kGlobal}};
  std::erase_if(teams, [](const cuda::ForcedLaunch& by) { return !device_has(by); });
  constexpr int32_t kMany = 132, kLarge = 227 << 10, kSmall = 8 << 10;
  struct Sizes {
    int32_t B, S, C, H, D, k, m;
    bool has_cls, from_matrix;
    int32_t multiprocessors, shared_bytes;
  };
  constexpr Sizes kSizes[] = {
      {2, 70, 40, 3, 16, 9, 5, true, false, kMany, kLarge},
      {1, 130, 24, 2, 9, 20, 7, false, false, kMany, kLarge},  // keys element by element
      {1, 50, 16, 4, 8, 7, 0, true, false, kMany, kLarge},     // the rest dropped
      {2, 33, 8, 1, 32, 1, 8, true, false, kMany, kLarge},     // CLS alone kept
      {1, 40, 8, 2, 8, 10, 29, false, false, kMany, kLarge},   // one token to merge
      {1, 60, 16, 2, 8, 9, 6, false, true, kMany, kLarge},     // scores from all queries
      {1, 210, 8, 1, 8, 20, 130, true, false, kMany, kLarge},  // more targets than are held at a time
      {1, 300, 8, 2, 8, 30, 20, true, false, kMany, kLarge},   // several slices
      {5, 40, 16, 2, 8, 6, 4, true, false, 8, kLarge},         // more images than teams
      {1, 77, 16, 11, 72, 7, 4, true, false, kMany, kLarge},   // nine vectors of channels; heads in two batches
      {1, 45, 16, 16, 80, 6, 3, true, false, kMany, kLarge},   // an even number of heads
      {1, 90, 264, 2, 8, 9, 6, true, false, kMany, kSmall},    // channels in several tiles, read as they come
  };
  struct Rule {
    SelectionPolicy policy;
    bool keep_cls;
  };
  constexpr Rule kRules[] = {{SelectionPolicy::kAttention, true},
                             {SelectionPolicy::kDistinct, true},
                             {SelectionPolicy::kAttention, false},
                             {SelectionPolicy::kDistinct, false}};
  Numbers numbers(2);
  int launches = 0, number = 0;
  for (const Rule& rule : kRules) {
    for (const Sizes& s : kSizes) {
      for (const bool from_queries : {false, true}) {
        if (!s.has_cls && (from_queries || !rule.keep_cls)) continue;
        if (&rule != kRules && s.has_cls && from_queries == ((&s - kSizes) % 2 == 0)) continue;  // one source is enough
        const auto dtype = static_cast<DType>(number % 3);
        const MergeMode mode = number % 2 == 0 ? MergeMode::kResidual : MergeMode::kMean;
        number++;
        launches += run_case({s.B, s.S, s.C, s.H, s.D, s.k, s.m, from_queries, s.has_cls, s.from_matrix,
                              s.multiprocessors, s.shared_bytes, dtype, mode, rule.policy, rule.keep_cls},
                             teams, numbers);
      }
    }
  }
  return launches;
}

}  // namespace visionzip::kernel_tests
