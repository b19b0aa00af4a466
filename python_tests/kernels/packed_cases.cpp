// Packed images: where they lie; and by every path and team, from the fused kernel and from merge and its adjoint, the
// bits that each image gives by itself, as an image of a batch of one.
#include <algorithm>
#include <numeric>

#include "cuda/kernels/merge.h"
#include "zip_launch.h"

namespace visionzip::kernel_tests {

namespace {

using cuda::Path;

struct Image {
  int32_t S, k, m;
};

struct Case {
  std::vector<Image> images;
  int32_t C, H, D, group;
  bool from_queries;  // of CLS; else finished scores
  int32_t multiprocessors;
  DType dtype;
  SelectionPolicy policy = SelectionPolicy::kAttention;
  bool keep_cls = true;

  std::string text() const {
    std::string all = from_queries ? "packed, queries of CLS: S" : "packed, scores: S";
    for (const Image& image : images) all += " " + std::to_string(image.S);
    for (const int32_t size : {C, H, D, group}) all += ", " + std::to_string(size);
    all += policy == SelectionPolicy::kDistinct ? ", distinct" : "";
    return all + (keep_cls ? ", " : ", CLS without a row, ") + name_of(dtype);
  }
  template <class Number>
  std::vector<Number> each(int32_t Image::* size) const {
    std::vector<Number> numbers;
    for (const Image& image : images) numbers.push_back(image.*size);
    return numbers;
  }
  int64_t all(int32_t Image::* size) const {
    const auto numbers = each<int64_t>(size);
    return std::accumulate(numbers.begin(), numbers.end(), int64_t{0});
  }
  int32_t most(int32_t Image::* size) const {
    const auto numbers = each<int32_t>(size);
    return *std::max_element(numbers.begin(), numbers.end());
  }
  int64_t tokens() const { return all(&Image::S); }
  int64_t kept() const { return all(&Image::k); }
  int64_t rows() const { return kept() + all(&Image::m); }
};

struct Inputs {
  Elements hidden, keys, queries, scores, grad;

  Inputs(const Case& c, Numbers& numbers)
      : hidden(c.dtype, c.tokens() * c.C),
        keys(c.dtype, c.tokens() * c.group * c.H * c.D),
        queries(c.dtype, keys.count()),
        scores(c.dtype, c.tokens() * c.group),
        grad(c.dtype, c.rows() * c.C) {
    for (Elements* elements : {&hidden, &keys, &queries, &scores, &grad}) fill_normal(*elements, numbers);
  }
};

struct Results {
  Elements tokens, grads;  // of the output's rows; of hidden
  std::vector<int64_t> indices, assignment;

  Results(DType dtype, int64_t C, int64_t S, int64_t k, int64_t m)
      : tokens(dtype, (k + m) * C),
        grads(dtype, S * C),
        indices(static_cast<size_t>(k), -7),
        assignment(static_cast<size_t>(S), -7) {}
  explicit Results(const Case& c) : Results(c.dtype, c.C, c.tokens(), c.kept(), c.rows() - c.kept()) {}
};

const void* at(const Elements& elements, int64_t i) {
  return static_cast<const char*>(elements.data()) +
         static_cast<size_t>(i) * elements.bytes() / std::max<size_t>(elements.count(), 1);
}

void check(cudaError_t error, const Case& c, const std::string& what) {
  if (error != cudaSuccess) throw std::runtime_error(c.text() + ", " + what + "\n" + cudaGetErrorString(error));
}

// Of all images together; `alone`: of one as a batch.
cuda::ZipProblem problem_of(const Case& c, const cuda::Sequence* alone) {
  return {.dtype = c.dtype,
          .source = c.from_queries ? ScoreSource::kQueryKey : ScoreSource::kScores,
          .has_cls = c.from_queries,
          .has_lse = false,
          .has_hidden = true,
          .packed = !alone,
          .mode = MergeMode::kMean,
          .scale = 1 / std::sqrt(static_cast<float>(c.D)),
          .S = alone ? alone->tokens : c.most(&Image::S),
          .k = alone ? alone->k : c.most(&Image::k),
          .m = alone ? alone->m : c.most(&Image::m),
          .C = c.C,
          .H = c.H,
          .D = c.D,
          .attn_heads = c.from_queries ? c.H : 1,
          .group = c.group,
          .images = alone ? 1 : static_cast<int64_t>(c.images.size()),
          .all_tokens = alone ? alone->tokens : c.tokens(),
          .policy = c.policy,
          .keep_cls = c.keep_cls};
}

// From that token on.
cuda::ZipTensors tensors_of(const Case& c, const Inputs& in, Results& out, int64_t first_token) {
  const int64_t cell = first_token * c.group, row = int64_t{c.H} * c.D;
  cuda::ZipTensors t{};
  t.hidden = at(in.hidden, first_token * c.C);
  t.keys = at(in.keys, cell * row);
  t.queries = c.from_queries ? at(in.queries, cell * row) : nullptr;
  t.attn = c.from_queries ? nullptr : at(in.scores, cell);
  t.attn_dtype = c.dtype;
  t.tokens = out.tokens.data();
  t.indices = out.indices.data();
  t.assignment = out.assignment.data();
  t.hidden_image = t.hidden_token = c.C;
  t.key_token = t.query_token = row;
  t.key_image = c.group * row;
  t.query_image = row;
  t.key_head = t.query_head = c.D;
  t.attn_image = c.group;
  t.wide_keys = t.wide_queries = static_cast<size_t>(c.D) * size_of(c.dtype) % 16 == 0;
  return t;
}

// Of all images together; `alone`: of one as a batch.
cuda::MergeProblem merge_problem_of(const Case& c, const cuda::Sequence* alone) {
  return {.dtype = c.dtype,
          .mode = MergeMode::kMean,
          .B = alone ? 1 : static_cast<int64_t>(c.images.size()),
          .S = alone ? alone->tokens : 0,
          .k = alone ? alone->k : 0,
          .m = alone ? alone->m : 0,
          .C = c.C,
          .all_rows = alone ? alone->k + alone->m : c.rows()};
}

void launch(const Case& c, const cuda::ZipProblem& problem, const cuda::ZipTensors& tensors,
            const cuda::ForcedLaunch& by, int64_t all_rows) {
  cuda::Gpu gpu{};
  cuda::describe_gpu(gpu);
  cuda::assume_clusters(gpu);  // all of them, however few multiprocessors a case has
  gpu.multiprocessors = c.multiprocessors;
  launch_by(problem, tensors, gpu, by, all_rows, c.text());
}

void run_packed(const Case& c, const Inputs& in, const Placement& placement, const cuda::ForcedLaunch& by,
                Results& out) {
  cuda::ZipTensors tensors = tensors_of(c, in, out, 0);
  tensors.sequences = placement.sequences.data();
  tensors.order = placement.order.data();
  launch(c, problem_of(c, nullptr), tensors, by, c.rows());
}

// The fused kernel's tokens again, by merge; then the adjoint.
void merge_packed(const Case& c, const Inputs& in, const Placement& placement, Results& results) {
  const cuda::MergeProblem problem = merge_problem_of(c, nullptr);
  const auto params = [&](const Elements& from, const Elements& to) {
    return cuda::MergeParams{problem,
                             {from.data(), to.data(), results.assignment.data(), c.C, c.C, placement.sequences.data()}};
  };
  const Elements tokens(c.dtype, c.rows() * c.C);
  check(cuda::launch_merge(params(in.hidden, tokens), nullptr), c, "merge");
  if (std::memcmp(tokens.data(), results.tokens.data(), tokens.bytes()) != 0) {
    throw std::runtime_error(c.text() + "\nmerge gives other bits than the fused kernel");
  }
  check(cuda::launch_merge_backward(params(in.grad, results.grads), nullptr), c, "merge_backward");
}

void run_alone(const Case& c, const Inputs& in, const cuda::Sequence& s, Results& out) {
  launch(c, problem_of(c, &s), tensors_of(c, in, out, s.first_token), {Path::kBlock, 1}, s.k + s.m);
  const cuda::MergeTensors back{
      at(in.grad, int64_t{s.first_row} * c.C), out.grads.data(), out.assignment.data(), c.C, c.C, nullptr};
  check(cuda::launch_merge_backward({merge_problem_of(c, &s), back}, nullptr), c, "merge_backward");
}

void check_image(const Case& c, const Results& all, const Results& alone, const cuda::Sequence& s) {
  bool same = std::memcmp(at(all.tokens, int64_t{s.first_row} * c.C), alone.tokens.data(), alone.tokens.bytes()) == 0;
  same = same && std::memcmp(at(all.grads, int64_t{s.first_token} * c.C), alone.grads.data(), alone.grads.bytes()) == 0;
  for (int j = 0; j < s.k; j++) {
    same = same &&
           all.indices[static_cast<size_t>(s.first_kept + j)] == s.first_token + alone.indices[static_cast<size_t>(j)];
  }
  for (int i = 0; i < s.tokens; i++) {
    const int64_t own = alone.assignment[static_cast<size_t>(i)];
    same = same && all.assignment[static_cast<size_t>(s.first_token + i)] == (own < 0 ? own : s.first_row + own);
  }
  if (!same)
    throw std::runtime_error(c.text() + "\nother results than alone from token " + std::to_string(s.first_token));
}

void check_dropped(const Case& c, const Results& all, const cuda::Sequence& s) {
  for (int64_t i = s.first_token; i < s.first_token + s.tokens; i++) {
    bool nothing = all.assignment[static_cast<size_t>(i)] == -1;
    for (int64_t x = i * c.C; x < (i + 1) * c.C; x++) nothing = nothing && all.grads[x] == 0;
    if (!nothing) throw std::runtime_error(c.text() + "\ntoken " + std::to_string(i) + " was not dropped");
  }
}

// Grouped images are compared between teams only: a batch has no groups.
int run_case(const Case& c, const std::vector<cuda::ForcedLaunch>& teams, Numbers& numbers) {
  const Inputs in(c, numbers);
  const Placement placement(c.each<int32_t>(&Image::S), c.each<int64_t>(&Image::k), c.each<int64_t>(&Image::m),
                            c.keep_cls);
  Results first(c);
  run_packed(c, in, placement, {device_has({Path::kCluster, 4}) ? Path::kCluster : Path::kGrid, 4}, first);
  merge_packed(c, in, placement, first);
  for (const cuda::Sequence& s : placement.sequences) {
    if (s.k + s.m == 0) check_dropped(c, first, s);
    if (s.k + s.m == 0 || c.group > 1) continue;
    Results alone(c.dtype, c.C, s.tokens, s.k, s.m);
    run_alone(c, in, s, alone);
    check_image(c, first, alone, s);
  }
  for (const cuda::ForcedLaunch& by : teams) {
    Results other(c);
    run_packed(c, in, placement, by, other);
    if (other.indices == first.indices && other.assignment == first.assignment &&
        std::memcmp(other.tokens.data(), first.tokens.data(), first.tokens.bytes()) == 0) {
      continue;
    }
    throw std::runtime_error(c.text() + "\nother bits than by the first team, of 4: " + cuda::to_text(by));
  }
  return static_cast<int>(teams.size()) + 4;
}

// More sequences than have room in one launch's parameters.
int run_placement(bool alike, Numbers& numbers) {
  constexpr size_t kCount = 700;
  std::vector<int32_t> lengths(kCount);
  std::vector<int64_t> k(kCount, 2), m(kCount, 1);
  for (size_t i = 0; i < kCount; i++) {
    lengths[i] = static_cast<int32_t>(3 + numbers() % 20);
    if (!alike) k[i] = static_cast<int64_t>(numbers() % 3);
  }
  const Placement placement(lengths, k, m);
  int32_t token = 0, row = 0, kept = 0, before = INT32_MAX;
  std::vector<bool> seen(kCount);
  for (size_t i = 0; i < kCount; i++) {
    const cuda::Sequence& s = placement.sequences[i];
    const auto own_k = static_cast<int32_t>(k[i]), own_m = static_cast<int32_t>(m[i]);
    const bool right = s.first_token == token && s.tokens == lengths[i] && s.k == own_k && s.m == own_m &&
                       s.first_row == row && s.first_kept == kept && placement.row_starts[i] == row;
    if (!right) throw std::runtime_error("sequence " + std::to_string(i) + " is placed wrongly");
    token += lengths[i];
    row += own_k + own_m;
    kept += own_k;
    const auto next = static_cast<size_t>(placement.order[i]);
    if (next >= kCount || seen[next] || lengths[next] > before)
      throw std::runtime_error("sequences are in another order");
    seen[next] = true;
    before = lengths[next];
  }
  if (placement.row_starts[kCount] != row) throw std::runtime_error("the rows' end is wrong");
  return 1;
}

}  // namespace

int run_packed_cases() {
  std::vector<cuda::ForcedLaunch> teams{{Path::kBlock, 1},    {Path::kCluster, 2},   {Path::kCluster, 11, 256},
                                        {Path::kCluster, 16}, {Path::kGrid, 3, 256}, {Path::kGrid, 4},
                                        {Path::kGlobal}};
  std::erase_if(teams, [](const cuda::ForcedLaunch& by) { return !device_has(by); });
  constexpr int32_t kMany = 132;
  Numbers numbers(5);
  int launches = run_placement(true, numbers) + run_placement(false, numbers);
  const std::vector<Image> mixed{{40, 7, 5}, {3, 0, 0}, {150, 20, 9}, {0, 0, 0}, {1, 1, 0}, {33, 9, 24}};
  for (const bool from_queries : {true, false}) {
    launches += run_case({mixed, 24, 3, 16, 1, from_queries, kMany, DType::kFloat32}, teams, numbers);
    launches +=
        run_case({mixed, 16, 2, 9, 1, from_queries, 8, DType::kBFloat16}, teams, numbers);  // several images a team
  }
  constexpr auto kDistinct = SelectionPolicy::kDistinct;
  const std::vector<Image> rowless{{40, 7, 5}, {3, 0, 0}, {150, 20, 9}, {0, 0, 0}, {2, 1, 0}, {33, 0, 32}};
  launches += run_case({mixed, 24, 3, 16, 1, true, kMany, DType::kBFloat16, kDistinct}, teams, numbers);
  launches += run_case({mixed, 16, 2, 9, 1, false, 8, DType::kFloat32, kDistinct}, teams, numbers);
  launches += run_case({mixed, 16, 3, 8, 4, false, kMany, DType::kFloat16, kDistinct}, teams, numbers);
  for (const SelectionPolicy policy : {SelectionPolicy::kAttention, kDistinct}) {
    launches += run_case({rowless, 16, 2, 9, 1, true, 8, DType::kFloat32, policy, false}, teams, numbers);
  }
  launches += run_case({mixed, 16, 3, 8, 4, false, kMany, DType::kFloat16}, teams, numbers);
  launches += run_case({mixed, 8, 9, 5, 3, false, 8, DType::kFloat32}, teams, numbers);
  // A chunk of statistics has more tokens in a long image: the short one has more chunks.  Before 8.0 a block's shared
  // memory has no room for such an image alone.
  if (emulated_device().compute_capability >= 80) {
    launches += run_case({{{2100, 20, 9}, {2000, 30, 8}}, 8, 1, 8, 1, true, kMany, DType::kFloat32},
                         {{Path::kGrid, 2}, {Path::kGlobal, 0}}, numbers);
  }
  return launches;
}

}  // namespace visionzip::kernel_tests
