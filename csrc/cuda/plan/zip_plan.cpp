#include "cuda/plan/zip_plan.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <vector>

namespace visionzip::cuda {

namespace {

constexpr int32_t kThreads = 512;
constexpr int32_t kMostTokens = 65535;  // token numbers are kept in 16 bits
constexpr int32_t kMostGridBlocks = 64;
// Below so many comparisons a block, counting ranks is quicker than eight rounds over all scores (reasoned from
// instruction counts, not measured).
constexpr int64_t kMostComparisons = 32 << 10;

// How many teams work at the same time.
int64_t teams_at_once(const Gpu& gpu, Path path, int32_t team) {
  if (path != Path::kCluster) return gpu.multiprocessors / team;
  return team <= kMostClusterBlocks ? gpu.clusters[static_cast<size_t>(team)] : 0;
}

// With this team: hidden staged if that fits and may help, else streamed in the widest tile that fits.
bool try_team(ZipParams& p, int32_t element_bytes, const Gpu& gpu, Path path, int32_t team) {
  p.team_blocks = team;
  const bool one_wave = p.images <= teams_at_once(gpu, path, team);
  const bool may_stage = p.hidden && p.m > 0 && one_wave;
  for (const bool staged : {true, false}) {
    if (staged && !may_stage) continue;
    for (const int32_t tile : {0, 32, 16, 8, 4, 2, 1}) {
      if (staged && tile) continue;  // a copy in pieces would wait for each
      p.staged = staged;
      p.tile_vectors = tile;
      lay_out(p, element_bytes);
      if (p.at.total <= gpu.block_shared_bytes) {
        p.rank_counting = int64_t{p.S} * block_tokens_of(p.S, team) <= kMostComparisons;
        return true;
      }
    }
  }
  return false;
}

// Team sizes from the best to the worst: as many blocks an image as one wave has room for, up to `most`; then more,
// where memory asks for smaller parts; then fewer.  Packed images count by their tokens, as so many of the longest: one
// that is many times the others would keep a small team busy long after they are done.
std::vector<int32_t> teams_to_try(const ZipParams& p, const Gpu& gpu, Path path, int32_t least, int32_t most,
                                  int32_t possible) {
  int32_t best = most;
  while (best > least && p.all_tokens > p.S * teams_at_once(gpu, path, best)) best /= 2;
  std::vector<int32_t> teams;
  for (int32_t team = best; team <= possible; team *= 2) teams.push_back(team);
  for (int32_t team = best / 2; team >= least; team /= 2) teams.push_back(team);
  return teams;
}

bool try_path(ZipParams& p, int32_t element_bytes, const Gpu& gpu, Path path, int32_t team) {
  std::vector<int32_t> teams;
  switch (path) {
    case Path::kCluster:
      // At least four, so that enough loads of one image are in flight (reasoned, not measured).
      teams = teams_to_try(p, gpu, path, 4, kMostClusterBlocks, kMostClusterBlocks);
      break;
    case Path::kGrid:
      teams = teams_to_try(p, gpu, path, 2, 16, std::min(kMostGridBlocks, gpu.multiprocessors));
      break;
    case Path::kBlock:
      teams = {1};
      break;
    case Path::kNone:
      return false;
  }
  if (team > 0) teams = {team};
  return std::any_of(teams.begin(), teams.end(), [&](int32_t t) {
    return (path != Path::kCluster || teams_at_once(gpu, path, t) > 0) && try_team(p, element_bytes, gpu, path, t);
  });
}

// Small batches want many blocks an image; large ones, without clusters, one block each and no barrier between blocks.
std::vector<Path> paths_to_try(const ZipParams& p, const Gpu& gpu) {
  if (*std::max_element(gpu.clusters.begin(), gpu.clusters.end()) > 0)
    return {Path::kCluster, Path::kGrid, Path::kBlock};
  if (p.all_tokens >= int64_t{p.S} * gpu.multiprocessors) return {Path::kBlock, Path::kGrid};
  return {Path::kGrid, Path::kBlock};
}

ZipPlan finish(ZipParams& p, const Gpu& gpu, Path path) {
  ZipPlan plan{};
  plan.path = path;
  plan.threads = kThreads;
  plan.shared_bytes = p.at.total;
  if (path == Path::kCluster) {
    p.teams = static_cast<int32_t>(p.images);
  } else {
    // Resident together, one block a multiprocessor; a team takes one image after another.
    p.teams = static_cast<int32_t>(std::min<int64_t>(p.images, std::max(1, gpu.multiprocessors / p.team_blocks)));
  }
  plan.blocks = p.teams * p.team_blocks;
  plan.scratch_bytes = path == Path::kGrid && p.team_blocks > 1 ? p.teams * p.scratch_of_team : 0;
  plan.why = std::to_string(p.team_blocks) + " blocks an image; hidden " +
             (p.staged ? "staged in shared memory" : "read where it is");
  return plan;
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
    case Path::kNone:
      break;
  }
  return "none";
}

ZipPlan plan_zip(ZipParams& p, int32_t element_bytes, const Gpu& gpu, Path forced, int32_t team) {
  const auto none = [](const std::string& why) { return ZipPlan{Path::kNone, 0, 0, 0, 0, why}; };
  if (p.S > kMostTokens) return none("S is over " + std::to_string(kMostTokens));
  for (const Path path : paths_to_try(p, gpu)) {
    if (forced != Path::kNone && path != forced) continue;
    if (try_path(p, element_bytes, gpu, path, team)) return finish(p, gpu, path);
  }
  if (forced != Path::kNone) {
    throw std::invalid_argument(std::string("VISIONZIP_PATH=") + name_of(forced) +
                                " cannot be taken for S = " + std::to_string(p.S) + " on a GPU of compute capability " +
                                std::to_string(gpu.compute_capability));
  }
  return {Path::kNone, 0, 0,
          0,           0, "shared memory of " + std::to_string(gpu.block_shared_bytes) + " bytes is too small"};
}

Path forced_path() {
  const char* value = std::getenv("VISIONZIP_PATH");
  if (!value || !*value) return Path::kNone;
  for (const Path path : {Path::kCluster, Path::kGrid, Path::kBlock}) {
    if (std::string(value) == name_of(path)) return path;
  }
  throw std::invalid_argument("VISIONZIP_PATH is \"" + std::string(value) + "\"; expected cluster, grid or block");
}

int32_t forced_team() {
  const char* value = std::getenv("VISIONZIP_TEAM");
  if (!value || !*value) return 0;
  const int team = std::atoi(value);
  if (team < 1) throw std::invalid_argument("VISIONZIP_TEAM is \"" + std::string(value) + "\"; expected 1 or more");
  return team;
}

}  // namespace visionzip::cuda
