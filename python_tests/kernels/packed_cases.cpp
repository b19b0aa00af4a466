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

  std::string text() const {
    std::string all = from_queries ? "packed, queries of CLS: S" : "packed, scores: S";
    for (const Image& image : images) all += " " + std::to_string(image.S);
    for (const int32_t size : {C, H, D, group}) all += ", " + std::to_string(size);
    return all + ", " + name_of(dtype);
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

// Of all images together, or, from that token on, of one as a batch.
cuda::ZipParams describe(const Case& c, const Inputs& in, Results& out, int64_t first_token) {
  const int64_t cell = first_token * c.group, row = int64_t{c.H} * c.D;
  cuda::ZipParams p{};
  p.hidden = at(in.hidden, first_token * c.C);
  p.keys = at(in.keys, cell * row);
  p.queries = c.from_queries ? at(in.queries, cell * row) : nullptr;
  p.attn = c.from_queries ? nullptr : at(in.scores, cell);
  p.tokens = out.tokens.data();
  p.indices = out.indices.data();
  p.assignment = out.assignment.data();
  p.hidden_image = p.hidden_token = c.C;
  p.key_token = row;
  p.key_image = c.group * row;
  p.query_image = row;
  p.key_head = p.query_head = c.D;
  p.attn_image = p.group = c.group;
  p.attn_heads = p.attn_rows = 1;
  p.attn_dtype = c.dtype;
  p.C = c.C;
  p.H = c.H;
  p.D = c.D;
  p.mode = MergeMode::kMean;
  p.scale = 1 / std::sqrt(static_cast<float>(c.D));
  p.has_cls = c.from_queries;
  p.wide_keys = static_cast<size_t>(c.D) * size_of(c.dtype) % 16 == 0;
  return p;
}

cuda::MergeParams describe_merge(const Case& c, const void* in, const Elements& out, const Results& decision) {
  cuda::MergeParams p{};
  p.in = in;
  p.out = out.data();
  p.assignment = decision.assignment.data();
  p.image_stride = p.row_stride = p.C = c.C;
  p.dtype = c.dtype;
  p.mode = MergeMode::kMean;
  return p;
}

void launch(const Case& c, cuda::ZipParams& p, Path path, int team) {
  cuda::Gpu gpu{};
  cuda::describe_gpu(gpu);
  cuda::assume_clusters(gpu);  // all of them, however few multiprocessors a case has
  gpu.multiprocessors = c.multiprocessors;
  launch_by(p, c.dtype, gpu, path, team, c.text());
}

void run_packed(const Case& c, const Inputs& in, const Placement& placement, Path path, int team, Results& out) {
  cuda::ZipParams p = describe(c, in, out, 0);
  p.sequences = placement.sequences.data();
  p.order = placement.order.data();
  p.images = static_cast<int64_t>(c.images.size());
  p.all_tokens = c.tokens();
  p.S = c.most(&Image::S);
  p.k = c.most(&Image::k);
  p.m = c.most(&Image::m);
  launch(c, p, path, team);
}

// The fused kernel's tokens again, by merge; then the adjoint.
void carry_packed(const Case& c, const Inputs& in, const Placement& placement, Results& results) {
  const auto with_images = [&](cuda::MergeParams p) {
    p.sequences = placement.sequences.data();
    p.B = static_cast<int64_t>(c.images.size());
    p.all_rows = c.rows();
    return p;
  };
  const Elements tokens(c.dtype, c.rows() * c.C);
  check(cuda::launch_merge(with_images(describe_merge(c, in.hidden.data(), tokens, results)), nullptr), c, "merge");
  if (std::memcmp(tokens.data(), results.tokens.data(), tokens.bytes()) != 0) {
    throw std::runtime_error(c.text() + "\nmerge gives other bits than the fused kernel");
  }
  check(cuda::launch_merge_backward(with_images(describe_merge(c, in.grad.data(), results.grads, results)), nullptr), c,
        "merge_backward");
}

void run_alone(const Case& c, const Inputs& in, const cuda::Sequence& s, Results& out) {
  cuda::ZipParams p = describe(c, in, out, s.first_token);
  p.images = 1;
  p.all_tokens = p.S = s.tokens;
  p.k = s.k;
  p.m = s.m;
  launch(c, p, Path::kBlock, 1);
  cuda::MergeParams back = describe_merge(c, at(in.grad, int64_t{s.first_row} * c.C), out.grads, out);
  back.B = 1;
  back.S = s.tokens;
  back.k = s.k;
  back.m = s.m;
  back.all_rows = s.k + s.m;
  check(cuda::launch_merge_backward(back, nullptr), c, "merge_backward");
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

struct Team {
  Path path;
  int blocks;
};

// Grouped images are compared between teams only: a batch has no groups.
int run_case(const Case& c, const std::vector<Team>& teams, Numbers& numbers) {
  const Inputs in(c, numbers);
  const Placement placement(c.each<int32_t>(&Image::S), c.each<int64_t>(&Image::k), c.each<int64_t>(&Image::m));
  Results first(c);
  run_packed(c, in, placement, device_has(Path::kCluster, 4) ? Path::kCluster : Path::kGrid, 4, first);
  carry_packed(c, in, placement, first);
  for (const cuda::Sequence& s : placement.sequences) {
    if (s.k + s.m == 0) check_dropped(c, first, s);
    if (s.k + s.m == 0 || c.group > 1) continue;
    Results alone(c.dtype, c.C, s.tokens, s.k, s.m);
    run_alone(c, in, s, alone);
    check_image(c, first, alone, s);
  }
  for (const auto& [path, team] : teams) {
    Results other(c);
    run_packed(c, in, placement, path, team, other);
    if (other.indices == first.indices && other.assignment == first.assignment &&
        std::memcmp(other.tokens.data(), first.tokens.data(), first.tokens.bytes()) == 0) {
      continue;
    }
    throw std::runtime_error(c.text() + "\nother bits than by the first team, of 4: " + name_of(path) + " of " +
                             std::to_string(team));
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
  std::vector<Team> teams{
      {Path::kBlock, 1}, {Path::kCluster, 2}, {Path::kCluster, 16}, {Path::kGrid, 2}, {Path::kGrid, 4}};
  std::erase_if(teams, [](const Team& team) { return !device_has(team.path, team.blocks); });
  constexpr int32_t kMany = 132;
  Numbers numbers(5);
  int launches = run_placement(true, numbers) + run_placement(false, numbers);
  const std::vector<Image> mixed{{40, 7, 5}, {3, 0, 0}, {150, 20, 9}, {0, 0, 0}, {1, 1, 0}, {33, 9, 24}};
  for (const bool from_queries : {true, false}) {
    launches += run_case({mixed, 24, 3, 16, 1, from_queries, kMany, DType::kFloat32}, teams, numbers);
    launches +=
        run_case({mixed, 16, 2, 9, 1, from_queries, 8, DType::kBFloat16}, teams, numbers);  // several images a team
  }
  launches += run_case({mixed, 16, 3, 8, 4, false, kMany, DType::kFloat16}, teams, numbers);
  launches += run_case({mixed, 8, 9, 5, 3, false, 8, DType::kFloat32}, teams, numbers);
  // A chunk of statistics has more tokens in a long image: the short one has more chunks.  Before 8.0 a block's shared
  // memory has no room for such an image alone.
  if (emulated_device().compute_capability >= 80) {
    launches += run_case({{{2100, 20, 9}, {2000, 30, 8}}, 8, 1, 8, 1, true, kMany, DType::kFloat32}, {{Path::kGrid, 2}},
                         numbers);
  }
  return launches;
}

}  // namespace visionzip::kernel_tests
