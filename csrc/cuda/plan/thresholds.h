// Where one way of computing becomes quicker than another: matters of measurement, in one table for each generation of
// GPUs.  `python -m benchmarks.tune --device cuda` measures them and prints what it finds beside these.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>

namespace visionzip::cuda {

template <class T>
struct Threshold {
  T value;
  const char* source;  // the file in benchmarks/results that it comes from, or "modelled"
};

struct Thresholds {
  // Blocks of a team: at least so many, so that enough loads of one image are in flight; at most so many, as long as
  // shared memory has room.
  Threshold<int32_t> least_cluster_team, most_cluster_team;
  Threshold<int32_t> least_grid_team, most_grid_team;
  // And so many where it has not.
  Threshold<int32_t> largest_grid_team;
  // Threads of a block where the images exceed one wave of the largest blocks: more blocks a multiprocessor, in
  // different phases, keep the memory busy.
  Threshold<int32_t> many_images_threads;
  // Hidden is staged in shared memory up to so many waves of images.
  Threshold<double> staging_waves;
  // Without clusters, each block takes an image of its own from so many images a multiprocessor on.
  Threshold<double> block_path_images;
  // Up to so many comparisons a block, counting ranks is quicker than eight rounds over all scores.
  Threshold<int32_t> rank_comparisons;
  // Column sums: a block takes more chunks of a head as long as so many waves of blocks remain.
  Threshold<double> column_sum_waves;
};

const Thresholds& thresholds_of(int32_t compute_capability);

// By name: each value and where it comes from.
std::map<std::string, std::pair<double, std::string>> list_thresholds(const Thresholds& thresholds);

}  // namespace visionzip::cuda
