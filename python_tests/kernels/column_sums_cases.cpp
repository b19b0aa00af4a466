// The column-sums kernel against float64: head dimensions, dtypes, lengths, strides; one pass and two; packed
// sequences; the same bits whatever the blocks' share of the chunks.
#include <algorithm>

#include "cuda/kernels/column_sums.h"
#include "cuda/kernels/zip.h"
#include "driver.h"

namespace visionzip::kernel_tests {

namespace {

struct Case {
  std::vector<int32_t> lengths;  // of sequences: images of one length, unless packed
  bool packed;
  int32_t H, D;
  DType dtype;
  bool given_lse;
  float scale;
  int32_t shared_bytes;  // of the GPU that is planned for

  int32_t longest() const { return *std::max_element(lengths.begin(), lengths.end()); }
  int32_t tokens() const {
    int32_t all = 0;
    for (const int32_t length : lengths) all += length;
    return all;
  }
  std::string text() const {
    std::string all = packed ? "packed S" : "S";
    for (const int32_t length : lengths) all += " " + std::to_string(length);
    return all + ", H " + std::to_string(H) + ", D " + std::to_string(D) + ", " + name_of(dtype) +
           (given_lse ? ", lse" : "") + ", scale " + std::to_string(scale) + ", shared memory " +
           std::to_string(shared_bytes);
  }
};

// As attention has them: (tokens, H, D), with padding between heads where rows are not to be wide.
struct Inputs {
  int64_t head, token;
  Elements queries, keys, lse;

  Inputs(const Case& c, int64_t padding)
      : head(c.D + padding),
        token(c.H * head),
        queries(c.dtype, c.tokens() * token - padding),
        keys(c.dtype, c.tokens() * token - padding),
        lse(DType::kFloat32, int64_t{c.H} * c.tokens()) {}
};

double logit(const Case& c, const Inputs& in, int h, int64_t query, int64_t key) {
  double sum = 0;
  for (int d = 0; d < c.D; d++)
    sum += in.queries[query * in.token + h * in.head + d] * in.keys[key * in.token + h * in.head + d];
  return sum * static_cast<double>(c.scale);
}

// Images hold their rows of log-sum-exp by heads; packed sequences are one image.
int64_t lse_at(const Case& c, int h, int first, int i) {
  return c.packed ? int64_t{h} * c.tokens() + first + i : (int64_t{first} * c.H) + int64_t{h} * c.lengths[0] + i;
}

void fill_lse(const Case& c, Inputs& in) {
  int first = 0;
  for (const int32_t S : c.lengths) {
    for (int h = 0; h < c.H; h++) {
      for (int i = 0; i < S; i++) {
        double sum = 0;
        for (int j = 0; j < S; j++) sum += std::exp(logit(c, in, h, first + i, first + j));
        in.lse.set(lse_at(c, h, first, i), static_cast<float>(std::log(sum)));
      }
    }
    first += S;
  }
}

cuda::ColumnSumsProblem problem_of(const Case& c) {
  return {.dtype = c.dtype,
          .has_lse = c.given_lse,
          .scale = c.scale,
          .S = c.longest(),
          .H = c.H,
          .D = c.D,
          .group = 1,
          .images = static_cast<int64_t>(c.lengths.size()),
          .all_cells = c.tokens()};
}

cuda::QueryKeyTensors tensors_of(const Case& c, const Inputs& in, const Placement& placement) {
  cuda::QueryKeyTensors t{};
  t.queries = in.queries.data();
  t.keys = in.keys.data();
  t.lse = c.given_lse ? static_cast<const float*>(in.lse.data()) : nullptr;
  t.query_head = t.key_head = in.head;
  t.query_token = t.key_token = in.token;
  t.query_image = t.key_image = c.lengths[0] * in.token;
  t.lse_head = c.packed ? c.tokens() : c.lengths[0];
  t.lse_image = int64_t{c.H} * c.lengths[0];
  const auto element = static_cast<int64_t>(size_of(c.dtype));
  t.wide_queries = t.wide_keys = c.D * element % 16 == 0 && in.head * element % 16 == 0;
  t.sequences = c.packed ? placement.sequences.data() : nullptr;
  t.order = placement.order.data();
  return t;
}

std::vector<float> run(const Case& c, const Inputs& in, int32_t multiprocessors) {
  const Placement placement(c.lengths, std::vector<int64_t>(c.lengths.size(), 1),
                            std::vector<int64_t>(c.lengths.size()));
  cuda::Gpu gpu{};
  cuda::describe_gpu(gpu);
  gpu.multiprocessors = multiprocessors;
  gpu.block_shared_bytes = std::min(gpu.block_shared_bytes, c.shared_bytes);
  const cuda::ColumnSumsProblem problem = problem_of(c);
  const cuda::ColumnSumsPlan plan = cuda::plan_column_sums(problem, gpu);
  std::vector<float> sums(static_cast<size_t>(plan.sums_bytes) / sizeof(float), NAN);
  const cuda::QueryKeyTensors tensors = tensors_of(c, in, placement);
  const cudaError_t error =
      cuda::launch_column_sums(cuda::make_column_sums_params(problem, plan, tensors, sums.data()), plan, nullptr);
  if (error != cudaSuccess) throw std::runtime_error(c.text() + "\n" + cudaGetErrorString(error));
  return sums;
}

void check(const Case& c, const Inputs& in, const std::vector<float>& sums) {
  int first = 0;
  for (const int32_t S : c.lengths) {
    for (int h = 0; h < c.H; h++) {
      std::vector<double> expected(static_cast<size_t>(S)), row(static_cast<size_t>(S));
      for (int i = 0; i < S; i++) {
        double total = 0, most = -1e300;
        for (int j = 0; j < S; j++)
          most = std::max(most, row[static_cast<size_t>(j)] = logit(c, in, h, first + i, first + j));
        for (double& x : row) total += x = std::exp(x - most);
        for (int j = 0; j < S; j++) expected[static_cast<size_t>(j)] += row[static_cast<size_t>(j)] / total;
      }
      for (int j = 0; j < S; j++) {
        double sum = 0;
        for (int chunk = 0; chunk < cuda::kSumChunks; chunk++) {
          sum += static_cast<double>(sums[static_cast<size_t>(
              cuda::kSumChunks * (int64_t{first} * c.H + int64_t{h} * S) + int64_t{chunk} * S + j)]);
        }
        const double wanted = expected[static_cast<size_t>(j)];
        if (!(std::abs(sum - wanted) <= 1e-5 * wanted + 1e-9)) {
          throw std::runtime_error(c.text() + "\nkey " + std::to_string(first + j) + " of head " + std::to_string(h) +
                                   ": " + std::to_string(sum) + " instead of " + std::to_string(wanted));
        }
      }
    }
    first += S;
  }
}

// Few and many multiprocessors: one block a head, and one a chunk.
int run_case(const Case& c, int64_t padding, Numbers& numbers) {
  Inputs in(c, padding);
  fill_normal(in.queries, numbers);
  fill_normal(in.keys, numbers);
  if (c.given_lse) fill_lse(c, in);
  const std::vector<float> first = run(c, in, 132);
  check(c, in, first);
  int launches = 1;
  for (const int32_t multiprocessors : {1, 4}) {
    const std::vector<float> other = run(c, in, multiprocessors);
    if (std::memcmp(other.data(), first.data(), first.size() * sizeof(float)) != 0) {
      throw std::runtime_error(c.text() + "\nother bits for " + std::to_string(multiprocessors) + " multiprocessors");
    }
    launches++;
  }
  return launches;
}

}  // namespace

int run_column_sums_cases() {
  constexpr int32_t kLarge = 227 << 10;
  // Too little for the keys of the lengths below: two passes.
  constexpr int32_t kSmall = 44 << 10;
  constexpr int32_t kTiny = 8 << 10;  // for a head's rows: channels in slices
  Numbers numbers(3);
  int launches = 0;
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const int32_t D : {64, 72, 80, 96, 128}) {
      const float scale = 1 / std::sqrt(static_cast<float>(D));
      launches += run_case({{70}, false, 1, D, dtype, false, scale, kLarge}, 0, numbers);
    }
    // A head dimension that no vector divides, and rows that are not wide.
    launches += run_case({{67, 67}, false, 2, 13, dtype, false, 0.3f, kLarge}, 0, numbers);
    launches += run_case({{67, 67}, false, 2, 24, dtype, false, 0.3f, kLarge}, 3, numbers);
    launches += run_case({{40}, false, 2, 0, dtype, false, 0.3f, kLarge}, 0, numbers);
    launches += run_case({{1}, false, 1, 16, dtype, false, 0.3f, kLarge}, 0, numbers);
    launches += run_case({{33}, false, 1, 16, dtype, false, 0, kLarge}, 0, numbers);
    launches += run_case({{100, 100}, false, 2, 16, dtype, true, -0.3f, kLarge}, 0, numbers);
    launches += run_case({{300}, false, 1, 40, dtype, false, -0.2f, kSmall}, 0, numbers);
    launches += run_case({{5, 130, 1, 64, 33}, true, 2, 24, dtype, false, 0.2f, kLarge}, 0, numbers);
    launches += run_case({{40, 300, 64}, true, 1, 40, dtype, false, 0.2f, kSmall}, 0, numbers);
    launches += run_case({{40, 130}, true, 2, 16, dtype, true, 0.2f, kLarge}, 0, numbers);
    launches += run_case({{40}, false, 1, 300, dtype, false, 0.05f, kLarge}, 0, numbers);
    launches += run_case({{5, 300, 1}, true, 1, 40, dtype, false, 0.2f, kTiny}, 0, numbers);
    launches += run_case({{70, 70}, false, 2, 36, dtype, true, -0.2f, kTiny}, 3, numbers);
  }
  return launches;
}

// More queries in a chunk than have their statistics held at a time: minutes under the checkers.
int run_long_column_sums_cases() {
  Numbers numbers(4);
  const int32_t S = cuda::kSumChunks * cuda::kRowBlock + 70;
  return run_case({{S}, false, 1, 4, DType::kFloat32, false, 0.5f, 227 << 10}, 0, numbers);
}

}  // namespace visionzip::kernel_tests
