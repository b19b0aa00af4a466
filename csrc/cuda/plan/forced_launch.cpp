#include "cuda/plan/forced_launch.h"

#include <cstdlib>

#include "common/key_values.h"

namespace visionzip::cuda {

namespace {

const std::string kVariable = "VISIONZIP_PLAN";

int32_t number(const std::string& key, const std::string& value, int32_t most, const char* expected) {
  return parse_number<int32_t>(kVariable, key, value, 1, most, expected);
}

Path path_named(const std::string& value) {
  for (const Path path : {Path::kCluster, Path::kGrid, Path::kBlock, Path::kGlobal}) {
    if (value == name_of(path)) return path;
  }
  bad_value(kVariable, "path", value, "cluster, grid, block or global");
}

int32_t thread_count(const std::string& value) {
  const std::string expected = "a multiple of 32 up to " + std::to_string(kZipThreads);
  const auto threads = parse_number<int32_t>(kVariable, "threads", value, 32, kZipThreads, expected);
  if (threads % 32 != 0) bad_value(kVariable, "threads", value, expected);
  return threads;
}

// first: false.
bool one_of_two(const std::string& key, const std::string& value, const char* first, const char* second) {
  if (value != first && value != second) bad_value(kVariable, key, value, std::string(first) + " or " + second);
  return value == second;
}

int32_t sum_chunks(const std::string& value) {
  const char* expected = "1, 2, 4 or 8";
  const int32_t chunks = number("sum_chunks", value, kSumChunks, expected);
  if (kSumChunks % chunks != 0) bad_value(kVariable, "sum_chunks", value, expected);
  return chunks;
}

void set(ForcedLaunch& forced, const std::string& key, const std::string& value) {
  if (key == "path") {
    forced.path = path_named(value);
  } else if (key == "team") {
    forced.team = number(key, value, INT32_MAX, "1 or more");
  } else if (key == "threads") {
    forced.threads = thread_count(value);
  } else if (key == "staged") {
    forced.staged = one_of_two(key, value, "0", "1");
  } else if (key == "tile") {
    forced.tile = number(key, value, INT32_MAX, "1 or more");
  } else if (key == "select") {
    forced.rank_counting = one_of_two(key, value, "digits", "ranks");
  } else if (key == "sum_chunks") {
    forced.sum_chunks = sum_chunks(value);
  } else {
    unknown_key(kVariable, key, "path, team, threads, staged, tile, select or sum_chunks");
  }
}

}  // namespace

ForcedLaunch parse_forced_launch(const std::string& text) {
  ForcedLaunch forced;
  for (const auto& [key, value] : parse_key_values(kVariable, text)) set(forced, key, value);
  return forced;
}

ForcedLaunch forced_by_environment() {
  const char* value = std::getenv(kVariable.c_str());
  return value ? parse_forced_launch(value) : ForcedLaunch{};
}

std::string to_text(const ForcedLaunch& forced) {
  std::string text;
  const auto add = [&](const char* key, const std::string& value) {
    text += (text.empty() ? "" : ",") + std::string(key) + "=" + value;
  };
  if (forced.path != Path::kNone) add("path", name_of(forced.path));
  if (forced.team > 0) add("team", std::to_string(forced.team));
  if (forced.threads > 0) add("threads", std::to_string(forced.threads));
  if (forced.staged) add("staged", *forced.staged ? "1" : "0");
  if (forced.tile > 0) add("tile", std::to_string(forced.tile));
  if (forced.rank_counting) add("select", *forced.rank_counting ? "ranks" : "digits");
  if (forced.sum_chunks > 0) add("sum_chunks", std::to_string(forced.sum_chunks));
  return text;
}

}  // namespace visionzip::cuda
