// Plans of random problems: the same from the same problem, whatever was planned between.  Parameters: the problem, the
// tensors and the plan, whole.
#include <array>
#include <optional>

#include "common/rounding.h"
#include "cuda/plan/global_params.h"
#include "driver.h"

namespace visionzip::kernel_tests {

namespace {

using namespace cuda;

int32_t one_of(std::initializer_list<int32_t> values, Numbers& numbers) {
  return values.begin()[numbers() % values.size()];
}

ZipProblem random_problem(Numbers& numbers) {
  const auto flag = [&] { return numbers() % 2 == 0; };
  ZipProblem p{};
  p.dtype = static_cast<DType>(numbers() % 3);
  p.source = static_cast<ScoreSource>(numbers() % 4);
  p.has_cls = flag();
  p.has_lse = p.source == ScoreSource::kQueryKey && flag();
  p.has_hidden = flag();
  p.packed = flag();
  p.mode = static_cast<MergeMode>(numbers() % 2);
  p.scale = 0.125f;
  p.S = one_of({1, 33, 577, 729, 2048, 2049, 8192, 65535, 70000, 1 << 20}, numbers);
  p.k = static_cast<int32_t>(numbers() % static_cast<unsigned>(p.S));
  p.m = one_of({0, 1, p.S - p.k, (p.S - p.k) / 3}, numbers);
  p.C = one_of({0, 8, 1024, 1152, INT32_MAX}, numbers);
  p.H = one_of({1, 16, 20}, numbers);
  p.D = one_of({0, 5, 64, 72, 256, 300}, numbers);
  p.attn_heads = p.source == ScoreSource::kScores ? 1 : p.H;
  p.group = p.packed ? one_of({1, 4}, numbers) : 1;
  p.images = one_of({0, 1, 7, 160, 100000, INT32_MAX}, numbers);
  p.all_tokens = p.images * p.S;
  p.policy = static_cast<SelectionPolicy>(numbers() % 2);
  p.keep_cls = !p.has_cls || flag();
  return p;
}

Gpu random_gpu(Numbers& numbers) {
  Gpu gpu{};
  gpu.compute_capability = one_of({75, 80, 89, 90, 100, 120}, numbers);
  gpu.multiprocessors = one_of({1, 40, 108, 132, 170}, numbers);
  gpu.block_shared_bytes = one_of({44 << 10, 65536, 101376, 232448}, numbers);
  assume_clusters(gpu);
  return gpu;
}

// Each field another value.
ZipTensors distinct_tensors() {
  static const std::array<char, 16> memory{};
  static std::array<int64_t, 4> outputs{};
  static const Sequence sequence{};
  static const int32_t order = 0;
  static const float lse = 0;
  const char* at = memory.data();
  int64_t stride = 100;
  ZipTensors t{};
  for (const void** pointer : {&t.queries, &t.keys, &t.hidden, &t.attn}) *pointer = at++;
  for (int64_t* own :
       {&t.query_image, &t.query_head, &t.query_token, &t.key_image, &t.key_head, &t.key_token, &t.lse_image,
        &t.lse_head, &t.hidden_image, &t.hidden_token, &t.attn_image, &t.attn_head, &t.attn_row}) {
    *own = stride++;
  }
  t.lse = &lse;
  t.tokens = outputs.data();
  t.indices = outputs.data() + 1;
  t.assignment = outputs.data() + 2;
  t.attn_dtype = DType::kFloat16;
  t.wide_queries = t.wide_keys = true;
  t.sequences = &sequence;
  t.order = &order;
  return t;
}

void require(bool holds, const char* what) {
  if (!holds) throw std::runtime_error(what);
}

void check_params(const ZipProblem& problem, const ZipPlan& plan) {
  static float sums = 0;
  static char scratch = 0;
  const ZipTensors tensors = distinct_tensors();
  const ZipWorkspace workspace{&sums, &scratch};
  const ZipParams params = make_zip_params(problem, plan, tensors, workspace);
  require(static_cast<const ZipProblem&>(params) == problem, "the parameters are of another problem");
  require(static_cast<const ZipTiling&>(params) == plan.tiling, "the parameters are of another plan");
  require(params.scratch == &scratch && params.attn_rows == attention_rows(problem), "the workspace is missing");
  if (!needs_column_sums(problem)) {
    require(static_cast<const ZipTensors&>(params) == tensors, "the parameters are of other tensors");
    return;
  }
  ZipTensors given = tensors;  // but for the attention
  given.attn = &sums;
  given.attn_dtype = DType::kFloat32;
  given.attn_row = problem.S;
  given.attn_head = int64_t{kSumChunks} * problem.S;
  given.attn_image = int64_t{kSumChunks} * problem.H * (problem.packed ? problem.group : problem.S);
  require(static_cast<const ZipTensors&>(params) == given, "the column sums are not read as attention");
  const ColumnSumsParams before = make_column_sums_params(problem, plan, tensors, workspace);
  require(static_cast<const ColumnSumsProblem&>(before) == column_sums_problem(problem), "other column sums");
  require(static_cast<const QueryKeyTensors&>(before) == static_cast<const QueryKeyTensors&>(tensors),
          "column sums of other tensors");
  require(static_cast<const ColumnSumsTiling&>(before) == plan.column_sums->tiling, "column sums of another plan");
  require(before.sums == &sums && before.wide, "the column sums go elsewhere");
}

// Pieces of scratch memory follow one another, and its end is what the plan asks for.
void check_global(const ZipProblem& problem, const ZipPlan& plan) {
  const GlobalLayout lies = make_global_layout(problem, plan.tiling);
  int64_t last = 0;
  for (const int64_t piece : {lies.records, lies.column_sums, lies.head_stats, lies.scores, lies.lengths,
                              lies.resemblance, lies.taken, lies.targets, lies.target_metric, lies.rest, lies.total}) {
    require(piece >= last && piece % 128 == 0, "pieces of scratch memory overlap");
    last = piece;
  }
  require(lies.rest + (problem.m > 0 ? 4 * problem.all_tokens : 0) <= plan.scratch_bytes,
          "scratch memory is too small");
  const int64_t slices = count_slices(problem);
  require(slices >= problem.images * ceil_divide(problem.S, kSliceTokens) || problem.packed, "tokens are in no slice");
  require(lies.records + slices * lies.record_bytes <= lies.column_sums, "records are in other memory");
  const GlobalParams params = make_global_params(problem, plan, distinct_tensors(), {});
  require(!params.order && params.slices == slices && params.lies.total == plan.scratch_bytes,
          "the launches are of another plan");
}

}  // namespace

int run_plan_cases() {
  constexpr int kPlans = 20000;
  struct Planned {
    ZipProblem problem, unchanged;
    Gpu gpu;
    ZipPlan plan;
  };
  Numbers numbers(6);
  std::vector<Planned> all;
  for (int i = 0; i < kPlans; i++) {
    const ZipProblem problem = random_problem(numbers);
    const Gpu gpu = random_gpu(numbers);
    all.push_back({problem, problem, gpu, plan_zip(problem, gpu)});
  }
  int possible = 0, global = 0;
  for (const Planned& p : all) {
    require(plan_zip(p.problem, p.gpu) == p.plan, "the same problem has two plans");
    require(p.problem == p.unchanged, "planning changed the problem");
    if (p.plan.path == Path::kNone) {
      require(int64_t{p.problem.S} * p.problem.group > INT32_MAX, "a problem that is possible has no plan");
      continue;
    }
    possible++;
    if (p.plan.path == Path::kGlobal) {
      check_global(p.problem, p.plan);
      global++;
    } else {
      require(p.plan.blocks == int64_t{p.plan.tiling.teams} * p.plan.tiling.team_blocks,
              "blocks are not those of teams");
      require(p.plan.shared_bytes == p.plan.tiling.at.total, "shared memory is not as it was laid out");
    }
    require(p.plan.shared_bytes <= p.gpu.block_shared_bytes, "a plan takes more shared memory than there is");
    require(p.plan.column_sums.has_value() == needs_column_sums(p.problem), "column sums are not planned");
    check_params(p.problem, p.plan);
  }
  require(global > kPlans / 4 && possible - global > kPlans / 4, "too few problems are planned to test anything");
  return kPlans;
}

}  // namespace visionzip::kernel_tests
