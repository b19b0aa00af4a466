#include "cuda/plan/zip_plan.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <vector>

#include "cuda/plan/global_plan.h"

namespace visionzip::cuda {

namespace {

constexpr int32_t kMostTokens = 65535;  // token numbers are kept in 16 bits
constexpr int32_t kMostGridBlocks = 64;

// How many teams work at the same time.
int64_t teams_at_once(const Gpu& gpu, Path path, int32_t team) {
  if (path != Path::kCluster) return gpu.multiprocessors / team;
  return team <= kMostClusterBlocks ? gpu.clusters[static_cast<size_t>(team)] : 0;
}

// A cluster takes one image.  Of blocks that are resident together, one a multiprocessor, a team takes one image after
// another.
int64_t teams_to_launch(const ZipProblem& p, const Gpu& gpu, Path path, int32_t team) {
  if (path == Path::kCluster) return p.images;
  return std::min<int64_t>(p.images, std::max(1, gpu.multiprocessors / team));
}

// Hidden staged if that may help, in one tile, because a copy in pieces would wait for each; else streamed in tiles,
// the widest first.
std::vector<HiddenTile> tiles_to_try(const ZipProblem& p, const Gpu& gpu, Path path, int32_t team) {
  std::vector<HiddenTile> tiles;
  const bool one_wave = p.images <= teams_at_once(gpu, path, team);
  if (p.has_hidden && p.m > 0 && one_wave) tiles.push_back({true, 0});
  for (const int32_t vectors : {0, 32, 16, 8, 4, 2, 1}) tiles.push_back({false, vectors});
  return tiles;
}

// The first tile that shared memory has room for.
std::optional<ZipTiling> try_team(const ZipProblem& p, const Gpu& gpu, Path path, int32_t team) {
  if (path == Path::kCluster && teams_at_once(gpu, path, team) == 0) return std::nullopt;
  const int64_t teams = teams_to_launch(p, gpu, path, team);
  if (teams > INT32_MAX / team) return std::nullopt;
  for (const HiddenTile tile : tiles_to_try(p, gpu, path, team)) {
    const ZipTiling tiling = make_tiling(p, team, static_cast<int32_t>(teams), tile);
    if (tiling.at.total <= gpu.block_shared_bytes) return tiling;
  }
  return std::nullopt;
}

// Team sizes from the best to the worst: as many blocks an image as one wave has room for, up to `most`; then more,
// where memory asks for smaller parts; then fewer.  Packed images count by their tokens, as so many of the longest: one
// that is many times the others would keep a small team busy long after they are done.
std::vector<int32_t> team_sizes(const ZipProblem& p, const Gpu& gpu, Path path, int32_t least, int32_t most,
                                int32_t possible) {
  int32_t best = most;
  while (best > least && p.all_tokens > p.S * teams_at_once(gpu, path, best)) best /= 2;
  std::vector<int32_t> teams;
  for (int32_t team = best; team <= possible; team *= 2) teams.push_back(team);
  for (int32_t team = best / 2; team >= least; team /= 2) teams.push_back(team);
  return teams;
}

std::vector<int32_t> teams_to_try(const ZipProblem& p, const Gpu& gpu, Path path, int32_t forced) {
  if (forced > 0) return {forced};
  switch (path) {
    case Path::kCluster:
      // At least four, so that enough loads of one image are in flight.  `python -m benchmarks --device cuda --filter
      // B160` with VISIONZIP_TEAM=2, and with 4, measures it.
      return team_sizes(p, gpu, path, 4, kMostClusterBlocks, kMostClusterBlocks);
    case Path::kGrid:
      return team_sizes(p, gpu, path, 2, 16, std::min(kMostGridBlocks, gpu.multiprocessors));
    case Path::kBlock:
      return {1};
    case Path::kGlobal:
    case Path::kNone:
      break;
  }
  return {};
}

// Small batches want many blocks an image; large ones, without clusters, one block each and no barrier between blocks.
std::vector<Path> paths_to_try(const ZipProblem& p, const Gpu& gpu, Path forced) {
  if (forced != Path::kNone) return {forced};
  if (*std::max_element(gpu.clusters.begin(), gpu.clusters.end()) > 0)
    return {Path::kCluster, Path::kGrid, Path::kBlock};
  if (p.all_tokens >= int64_t{p.S} * gpu.multiprocessors) return {Path::kBlock, Path::kGrid};
  return {Path::kGrid, Path::kBlock};
}

ZipPlan no_plan(std::string why) {
  ZipPlan plan{};
  plan.why = std::move(why);
  return plan;
}

ZipPlan finish(const ZipTiling& tiling, Path path) {
  ZipPlan plan{};
  plan.path = path;
  plan.blocks = tiling.teams * tiling.team_blocks;
  plan.threads = kZipThreads;
  plan.shared_bytes = tiling.at.total;
  plan.scratch_bytes = path == Path::kGrid && tiling.team_blocks > 1 ? tiling.teams * tiling.scratch_of_team : 0;
  plan.tiling = tiling;
  plan.why = std::to_string(tiling.team_blocks) + " blocks an image; hidden " +
             (tiling.staged ? "staged in shared memory" : "read where it is");
  return plan;
}

ZipPlan plan_any_size(const ZipProblem& p, const Gpu& gpu, const ForcedLaunch& forced) {
  if (forced.path == Path::kGlobal) return plan_global(p, "as VISIONZIP_PATH says");
  const bool countable = p.S <= kMostTokens;
  for (const Path path : countable ? paths_to_try(p, gpu, forced.path) : std::vector<Path>{}) {
    for (const int32_t team : teams_to_try(p, gpu, path, forced.team)) {
      if (const auto tiling = try_team(p, gpu, path, team)) return finish(*tiling, path);
    }
  }
  if (forced.path != Path::kNone) {
    throw std::invalid_argument(std::string("VISIONZIP_PATH=") + name_of(forced.path) +
                                " cannot be taken for S = " + std::to_string(p.S) + " on a GPU of compute capability " +
                                std::to_string(gpu.compute_capability));
  }
  if (!countable) return plan_global(p, "S is over " + std::to_string(kMostTokens));
  return plan_global(p, "shared memory of " + std::to_string(gpu.block_shared_bytes) + " bytes is too small");
}

Path forced_path() {
  const char* value = std::getenv("VISIONZIP_PATH");
  if (!value || !*value) return Path::kNone;
  for (const Path path : {Path::kCluster, Path::kGrid, Path::kBlock, Path::kGlobal}) {
    if (std::string(value) == name_of(path)) return path;
  }
  throw std::invalid_argument("VISIONZIP_PATH is \"" + std::string(value) +
                              "\"; expected cluster, grid, block or global");
}

int32_t forced_team() {
  const char* value = std::getenv("VISIONZIP_TEAM");
  if (!value || !*value) return 0;
  const int team = std::atoi(value);
  if (team < 1) throw std::invalid_argument("VISIONZIP_TEAM is \"" + std::string(value) + "\"; expected 1 or more");
  return team;
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
  ZipPlan plan = plan_any_size(problem, gpu, forced);
  if (!needs_column_sums(problem)) return plan;
  if (int64_t{problem.S} * problem.group > INT32_MAX) return no_plan("an image has over 2147483647 cells");
  plan.column_sums = plan_column_sums(column_sums_problem(problem), gpu);
  return plan;
}

ForcedLaunch forced_by_environment() { return {forced_path(), forced_team()}; }

}  // namespace visionzip::cuda
