#include "cuda/plan/zip_plan.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "cuda/plan/forced_launch.h"
#include "cuda/plan/global_plan.h"
#include "cuda/plan/thresholds.h"

namespace visionzip::cuda {

namespace {

constexpr int32_t kMostTokens = 65535;             // token numbers are kept in 16 bits
constexpr int64_t kSharedBytesOfEachBlock = 1024;  // the system's own, beside what a block asks for

// Threads of a block, and how many such blocks a multiprocessor holds at the same time.
struct Blocks {
  int32_t threads, resident;
};

// Blocks of such a team work on one image.
struct Team {
  int32_t blocks;
  Blocks each;
};

// What all attempts at a plan know.
struct Request {
  const ZipProblem& p;
  const Gpu& gpu;
  const ForcedLaunch& forced;
  const Thresholds& thresholds;
};

// How many teams work at the same time.  Of clusters of smaller blocks at least so many.
int64_t teams_at_once(const Gpu& gpu, Path path, const Team& team) {
  if (path != Path::kCluster) return gpu.multiprocessors * team.each.resident / team.blocks;
  if (team.blocks > kMostClusterBlocks) return 0;
  return int64_t{gpu.clusters[static_cast<size_t>(team.blocks)]} * team.each.resident;
}

// A cluster takes one image.  Of blocks that are resident together a team takes one image after another.
int64_t teams_to_launch(const ZipProblem& p, const Gpu& gpu, Path path, const Team& team) {
  if (path == Path::kCluster) return p.images;
  return std::min<int64_t>(p.images, std::max<int64_t>(1, teams_at_once(gpu, path, team)));
}

// Hidden staged if that may help, in one tile, because a copy in pieces would wait for each; else streamed in tiles,
// the widest first.
std::vector<HiddenTile> tiles_to_try(const Request& r, Path path, const Team& team) {
  std::vector<HiddenTile> tiles;
  const auto at_once = static_cast<double>(teams_at_once(r.gpu, path, team));
  const bool few = static_cast<double>(r.p.images) <= r.thresholds.staging_waves.value * at_once;
  const bool whole = r.forced.tile == 0 || r.forced.tile >= block_vectors_of(r.p, team.blocks);
  const bool can_stage = r.p.has_hidden && r.p.m > 0;
  if (can_stage && whole && r.forced.staged.value_or(few)) tiles.push_back({true, 0});
  if (can_stage && r.forced.staged.value_or(false)) return tiles;
  if (r.forced.tile > 0) {
    tiles.push_back({false, r.forced.tile});
    return tiles;
  }
  for (const int32_t vectors : {0, 32, 16, 8, 4, 2, 1}) tiles.push_back({false, vectors});
  return tiles;
}

bool counts_ranks(const Request& r, int32_t team_blocks) {
  const int64_t comparisons = int64_t{r.p.S} * block_tokens_of(r.p.S, team_blocks);
  return r.forced.rank_counting.value_or(comparisons <= r.thresholds.rank_comparisons.value);
}

// The first tile that shared memory has room for.
std::optional<ZipTiling> try_team(const Request& r, Path path, const Team& team) {
  if (path == Path::kCluster && teams_at_once(r.gpu, path, team) == 0) return std::nullopt;
  const int64_t teams = teams_to_launch(r.p, r.gpu, path, team);
  if (teams > INT32_MAX / team.blocks) return std::nullopt;
  for (const HiddenTile tile : tiles_to_try(r, path, team)) {
    const ZipTiling tiling =
        make_tiling(r.p, team.blocks, static_cast<int32_t>(teams), tile, counts_ranks(r, team.blocks));
    const int64_t resident = team.each.resident * (tiling.at.total + kSharedBytesOfEachBlock);
    if (resident <= r.gpu.block_shared_bytes + kSharedBytesOfEachBlock) return tiling;
  }
  return std::nullopt;
}

// Sizes of teams: those that are wanted, and the largest that may be taken where memory asks for smaller parts.
struct TeamSizes {
  int32_t least, most, largest;
};

TeamSizes team_sizes(const Request& r, Path path) {
  if (r.forced.team > 0) return {r.forced.team, r.forced.team, r.forced.team};
  const Thresholds& t = r.thresholds;
  switch (path) {
    case Path::kCluster:
      return {t.least_cluster_team.value, t.most_cluster_team.value, kMostClusterBlocks};
    case Path::kGrid:
      return {t.least_grid_team.value, t.most_grid_team.value,
              std::min(t.largest_grid_team.value, r.gpu.multiprocessors)};
    case Path::kBlock:
    case Path::kGlobal:
    case Path::kNone:
      break;
  }
  return {1, 1, 1};
}

// As many blocks an image as one wave has room for; 0: it has none.  Packed images count by their tokens, as so many of
// the longest: one that is many times the others would keep a small team busy long after they are done.
int32_t one_wave_team(const Request& r, Path path, const TeamSizes& sizes, const Blocks& each) {
  int32_t blocks = sizes.most;
  while (blocks >= sizes.least && r.p.all_tokens > r.p.S * teams_at_once(r.gpu, path, {blocks, each})) blocks--;
  return blocks >= sizes.least ? blocks : 0;
}

// From the best to the worst: all images in one wave, of one block a multiprocessor if it has room for them; then, as
// shared memory asks for it, larger teams and smaller ones.
std::vector<Team> teams_to_try(const Request& r, Path path) {
  const auto forced = r.forced.threads, many_threads = forced > 0 ? forced : r.thresholds.many_images_threads.value;
  const Blocks one{forced > 0 ? forced : kZipThreads, 1}, many{many_threads, kZipThreads / many_threads};
  const TeamSizes sizes = team_sizes(r, path);
  const int32_t of_one = one_wave_team(r, path, sizes, one);
  std::vector<Team> teams;
  if (of_one == 0) teams.push_back({std::max(sizes.least, one_wave_team(r, path, sizes, many)), many});
  const int32_t best = std::max(sizes.least, of_one);
  for (int32_t blocks = best; blocks <= sizes.largest; blocks++) teams.push_back({blocks, one});
  for (int32_t blocks = best - 1; blocks >= sizes.least; blocks--) teams.push_back({blocks, one});
  return teams;
}

bool has_clusters(const Gpu& gpu) { return *std::max_element(gpu.clusters.begin(), gpu.clusters.end()) > 0; }

// Small batches want many blocks an image; large ones, without clusters, one block each and no barrier between blocks.
// So does the policy "distinct", for which there is a barrier for each token: over global memory it takes longer than
// one block's work on all the tokens that its shared memory has room for.
std::vector<Path> paths_to_try(const Request& r) {
  if (r.forced.path != Path::kNone) return {r.forced.path};
  if (has_clusters(r.gpu)) return {Path::kCluster, Path::kGrid, Path::kBlock};
  const bool distinct = r.p.policy == SelectionPolicy::kDistinct;
  const double images = r.thresholds.block_path_images.value * r.gpu.multiprocessors;
  if (distinct || static_cast<double>(r.p.all_tokens) >= r.p.S * images) return {Path::kBlock, Path::kGrid};
  return {Path::kGrid, Path::kBlock};
}

ZipPlan no_plan(std::string why) {
  ZipPlan plan{};
  plan.why = std::move(why);
  return plan;
}

std::string describe(const ZipTiling& tiling, const Blocks& each) {
  return std::to_string(tiling.team_blocks) + " blocks an image, " + std::to_string(each.resident) +
         " a multiprocessor; hidden " + (tiling.staged ? "staged in shared memory" : "read where it is");
}

ZipPlan finish(const ZipTiling& tiling, Path path, const Blocks& each) {
  ZipPlan plan{};
  plan.path = path;
  plan.blocks = tiling.teams * tiling.team_blocks;
  plan.threads = each.threads;
  plan.shared_bytes = tiling.at.total;
  plan.scratch_bytes = path == Path::kGrid && tiling.team_blocks > 1 ? tiling.teams * tiling.scratch_of_team : 0;
  plan.tiling = tiling;
  plan.why = describe(tiling, each);
  return plan;
}

bool forces_fused(const ForcedLaunch& forced) {
  ForcedLaunch fused = forced;
  fused.sum_chunks = 0;
  return fused != ForcedLaunch{};
}

// Which teams a path has on a GPU, as an error says it; empty if this is one.
std::string team_expected(const Gpu& gpu, Path path, int32_t team) {
  int32_t most = 1;
  if (path == Path::kGrid) most = gpu.multiprocessors;
  if (path == Path::kCluster) {
    if (team <= kMostClusterBlocks && gpu.clusters[static_cast<size_t>(team)] > 0) return {};
    for (int32_t blocks = 2; blocks <= kMostClusterBlocks; blocks++) {
      if (gpu.clusters[static_cast<size_t>(blocks)] > 0) most = blocks;
    }
  }
  if (path != Path::kCluster && team <= most) return {};
  return (most > 1 ? "1 to " + std::to_string(most) : "1") + " with path=" + name_of(path);
}

// Of all paths that may be taken; empty if one has such a team.
std::string team_expected(const Request& r) {
  std::string expected;
  for (const Path path : paths_to_try(r)) {
    const std::string own = team_expected(r.gpu, path, r.forced.team);
    if (own.empty()) return {};
    expected += (expected.empty() ? "" : ", ") + own;
  }
  return expected;
}

std::string no_room(const Gpu& gpu) {
  return "shared memory of " + std::to_string(gpu.block_shared_bytes) + " bytes is too small";
}

std::string why_not_as_forced(const Request& r) {
  const ForcedLaunch& f = r.forced;
  if (f.path == Path::kGlobal) return "path is global; expected no key with it but sum_chunks, as it has no teams";
  if (f.path == Path::kCluster && !has_clusters(r.gpu)) {
    return "path is cluster; expected grid or block, as no clusters run there";
  }
  if (r.p.S > kMostTokens) return "S is over " + std::to_string(kMostTokens);
  if (f.team > 0) {
    const std::string expected = team_expected(r);
    if (!expected.empty()) return "team is " + std::to_string(f.team) + "; expected " + expected;
  }
  int32_t largest_team = 1;
  for (const Path path : paths_to_try(r)) largest_team = std::max(largest_team, team_sizes(r, path).largest);
  const int32_t least_vectors = block_vectors_of(r.p, largest_team);
  if (f.staged.value_or(false) && f.tile > 0 && f.tile < least_vectors) {
    return "tile is " + std::to_string(f.tile) + "; expected all of a block's vectors, " +
           std::to_string(least_vectors) + " or more, as staged=1 copies them at once";
  }
  return no_room(r.gpu);
}

[[noreturn]] void refuse(const Request& r) {
  throw std::invalid_argument("VISIONZIP_PLAN=" + to_text(r.forced) +
                              " cannot be taken for S = " + std::to_string(r.p.S) + " on a GPU of compute capability " +
                              std::to_string(r.gpu.compute_capability) + ": " + why_not_as_forced(r));
}

ZipPlan plan_any_size(const Request& r) {
  if (r.forced.path == Path::kGlobal) {
    ForcedLaunch others = r.forced;
    others.path = Path::kNone;
    if (forces_fused(others)) refuse(r);
    return plan_global(r.p, "as VISIONZIP_PLAN says");
  }
  const bool countable = r.p.S <= kMostTokens;
  for (const Path path : countable ? paths_to_try(r) : std::vector<Path>{}) {
    if (r.forced.team > 0 && !team_expected(r.gpu, path, r.forced.team).empty()) continue;
    for (const Team& team : teams_to_try(r, path)) {
      if (const auto tiling = try_team(r, path, team)) return finish(*tiling, path, team.each);
    }
  }
  if (forces_fused(r.forced)) refuse(r);
  return plan_global(r.p, countable ? no_room(r.gpu) : "S is over " + std::to_string(kMostTokens));
}

}  // namespace

const char* name_of(Path path) {
  switch (path) {
    case Path::kCluster:
      return "cluster";
    case Path::kGrid:
      return "grid";
    case Path::kBlock:
      return "block";
    case Path::kGlobal:
      return "global";
    case Path::kNone:
      break;
  }
  return "none";
}

ZipPlan plan_zip(const ZipProblem& problem, const Gpu& gpu, const ForcedLaunch& forced) {
  const Thresholds& thresholds = thresholds_of(gpu.compute_capability);
  ZipPlan plan = plan_any_size({problem, gpu, forced, thresholds});
  if (!needs_column_sums(problem)) return plan;
  if (int64_t{problem.S} * problem.group > INT32_MAX) return no_plan("an image has over 2147483647 cells");
  plan.column_sums = plan_column_sums(column_sums_problem(problem), gpu, forced.sum_chunks);
  return plan;
}

}  // namespace visionzip::cuda
