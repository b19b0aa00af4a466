// merge and merge_backward over shapes, dtypes, strides and alignments.
#include <algorithm>

#include "cuda/kernels/merge.h"
#include "driver.h"

namespace visionzip::kernel_tests {

namespace {

struct Case {
  int64_t B, S, C, k, m;
  int64_t padding;  // elements between rows, which are not to be read
  DType dtype;
  MergeMode mode;

  std::string text() const {
    std::string sizes;
    for (const int64_t size : {B, S, C, k, m, padding}) sizes += " " + std::to_string(size);
    return "B S C k m padding" + sizes + ", " + name_of(dtype) + ", " + name_of(mode);
  }
};

// A decision: k kept tokens, targets at a fixed step among the others, the rest joining targets at random.
std::vector<int64_t> random_assignment(const Case& c, Numbers& numbers) {
  std::vector<int64_t> all;
  for (int64_t b = 0; b < c.B; b++) {
    std::vector<int64_t> tokens(static_cast<size_t>(c.S)), rows(static_cast<size_t>(c.S), -1);
    for (int64_t s = 0; s < c.S; s++) tokens[static_cast<size_t>(s)] = s;
    std::shuffle(tokens.begin(), tokens.end(), numbers);
    std::sort(tokens.begin(), tokens.begin() + c.k);
    for (int64_t i = 0; i < c.k; i++) rows[static_cast<size_t>(tokens[static_cast<size_t>(i)])] = i;
    const int64_t step = target_step(c.S - c.k, c.m);
    int64_t remaining = 0;
    for (int64_t& row : rows) {
      if (row >= 0 || c.m == 0) continue;
      const bool target = remaining % step == 0 && remaining / step < c.m;
      row = c.k + (target ? remaining / step : static_cast<int64_t>(numbers() % static_cast<unsigned>(c.m)));
      remaining++;
    }
    all.insert(all.end(), rows.begin(), rows.end());
  }
  return all;
}

cuda::MergeParams params_of(const Case& c, const Elements& in, const Elements& out, const int64_t* assignment,
                            int64_t rows) {
  const cuda::MergeProblem problem{.dtype = c.dtype,
                                   .mode = c.mode,
                                   .B = c.B,
                                   .S = c.S,
                                   .k = c.k,
                                   .m = c.m,
                                   .C = c.C,
                                   .all_rows = c.B * (c.k + c.m)};
  const int64_t row_stride = c.C + c.padding;
  return {problem, {in.data(), out.data(), assignment, rows * row_stride, row_stride, nullptr}};
}

void check(cudaError_t error, const char* op, const Case& c) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(op) + ": " + c.text() + "\n" + cudaGetErrorString(error));
  }
}

void check_value(double actual, double expected, const char* op, const Case& c) {
  if (is_near(actual, expected, c.dtype)) return;
  throw std::runtime_error(std::string(op) + ": " + c.text() + "\n" + std::to_string(actual) + " instead of " +
                           std::to_string(expected));
}

// The last row's padding is not there.
Elements new_rows(const Case& c, int64_t rows) {
  return Elements(c.dtype, std::max<int64_t>(0, c.B * rows * (c.C + c.padding) - c.padding));
}

void run_forward(const Case& c, const std::vector<int64_t>& assignment, Numbers& numbers) {
  Elements x = new_rows(c, c.S), out(c.dtype, c.B * (c.k + c.m) * c.C);
  fill_normal(x, numbers);
  check(cuda::launch_merge(params_of(c, x, out, assignment.data(), c.S), nullptr), "merge", c);
  for (int64_t b = 0; b < c.B; b++) {
    const Rows rows = rows_of(assignment.data() + b * c.S, c.S, c.k, c.m);
    for (int64_t row = 0; row < c.k + c.m; row++) {
      for (int64_t channel = 0; channel < c.C; channel++) {
        const auto of_token = [&](int64_t s) { return x[(b * c.S + s) * (c.C + c.padding) + channel]; };
        check_value(out[(b * (c.k + c.m) + row) * c.C + channel], merged_value(rows, row, c.mode, of_token), "merge",
                    c);
      }
    }
  }
}

void run_backward(const Case& c, const std::vector<int64_t>& assignment, Numbers& numbers) {
  const int64_t all_rows = c.k + c.m;
  Elements grad = new_rows(c, all_rows), out(c.dtype, c.B * c.S * c.C);
  fill_normal(grad, numbers);
  check(cuda::launch_merge_backward(params_of(c, grad, out, assignment.data(), all_rows), nullptr), "merge_backward",
        c);
  for (int64_t b = 0; b < c.B; b++) {
    const Rows rows = rows_of(assignment.data() + b * c.S, c.S, c.k, c.m);
    for (int64_t s = 0; s < c.S; s++) {
      const int64_t row = assignment[static_cast<size_t>(b * c.S + s)];
      double weight = 0;
      if (row >= 0) {
        const auto n = static_cast<double>(rows.merged[static_cast<size_t>(row)].size());
        const bool is_target = rows.target[static_cast<size_t>(row)] == s;
        weight = c.mode == MergeMode::kMean ? 1 / (n + 1) : is_target ? 1 : 1 / n;
      }
      for (int64_t channel = 0; channel < c.C; channel++) {
        const double of_row = row < 0 ? 0 : grad[(b * all_rows + row) * (c.C + c.padding) + channel];
        check_value(out[(b * c.S + s) * c.C + channel], weight * of_row, "merge_backward", c);
      }
    }
  }
}

}  // namespace

int run_merge_cases() {
  struct Sizes {
    int64_t B, S, C, k, m, padding;
  };
  constexpr Sizes kSizes[] = {
      {2, 41, 24, 7, 5, 0},       // whole vectors
      {2, 41, 24, 7, 5, 8},       // with padded rows
      {3, 130, 17, 13, 4, 0},     // element by element, more tokens than threads
      {1, 300, 1040, 20, 10, 0},  // more channels than threads read at a time
      {2, 33, 9, 33, 0, 0},       // all kept
      {2, 40, 8, 10, 0, 3},       // the rest dropped
      {2, 40, 8, 0, 7, 0},        // nothing kept
      {1, 30, 1, 10, 20, 0},      // every remaining token a target
      {1, 1, 5, 0, 1, 0},
  };
  Numbers numbers(1);
  int launches = 0;
  for (const Sizes& s : kSizes) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      for (const MergeMode mode : {MergeMode::kResidual, MergeMode::kMean}) {
        const Case c{s.B, s.S, s.C, s.k, s.m, s.padding, dtype, mode};
        const std::vector<int64_t> assignment = random_assignment(c, numbers);
        run_forward(c, assignment, numbers);
        run_backward(c, assignment, numbers);
        launches += 2;
      }
    }
  }
  return launches;
}

}  // namespace visionzip::kernel_tests
