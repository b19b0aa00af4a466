// Whole images by one thread each, and the rest phase by phase by all threads.
#include "cpu/torch/execute.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "cpu/kernels/phases.h"
#include "cpu/torch/parallel.h"

namespace visionzip::cpu {

namespace {

// One image's part of a phase that several share: its units lie one after another on a line of work.
struct Stretch {
  int64_t first, units, work;

  // The first unit whose middle is not before `position`, so that each has one owner among neighbouring ranges.
  int64_t unit_at(int64_t position) const {
    const int64_t unit = (position - first - work / 2 + work - 1) / work;
    return position <= first ? 0 : std::clamp(unit, int64_t{0}, units);
  }
};

// A phase of one image, by this thread.
template <class Phase, class Before>
auto run(Before before) {
  Phase phase(std::move(before));
  if (const int64_t units = phase.units()) phase.run(0, units);
  return std::move(phase).result();
}

// The images' units, one after another, are shared by all threads, in parts of about equal work.
template <class Phase>
void share(std::vector<Phase>& phases) {
  std::vector<Stretch> line;
  int64_t units = 0, work = 0;
  for (const Phase& phase : phases) {
    const int64_t own = phase.units();
    line.push_back({work, own, own ? phase.work() : 1});
    units += own;
    work += own * line.back().work;
  }
  if (units == 0) return;
  parallel(work, phases[0].least_units() * work / units, [&](int64_t begin, int64_t end) {
    for (size_t i = 0; i < phases.size(); i++) {
      const int64_t from = line[i].unit_at(begin), to = line[i].unit_at(end);
      if (from < to) phases[i].run(from, to);
    }
  });
}

// A phase of several images, by all threads.
template <class Phase, class Before>
auto run(std::vector<Before> before) {
  std::vector<Phase> phases;
  phases.reserve(before.size());
  for (Before& image : before) phases.emplace_back(std::move(image));
  share(phases);
  using Result = decltype(std::declval<Phase>().result());
  if constexpr (!std::is_void_v<Result>) {
    std::vector<Result> results;
    results.reserve(phases.size());
    for (Phase& phase : phases) results.push_back(std::move(phase).result());
    return results;
  }
}

// images: an Image, or a vector of them.
template <class Images>
void run_phases(Operation operation, Images images) {
  if (!decides(operation)) {
    auto decision = run<ReadDecision>(std::move(images));
    return run<Merge>(std::move(decision));
  }
  auto keys = run<ReadKeys>(std::move(images));
  auto sums = run<SumColumns>(std::move(keys));
  auto selected = run<Select>(std::move(sums));
  auto decision = run<Assign>(std::move(selected));
  if (merges(operation)) run<Merge>(std::move(decision));
}

void execute_whole(const CallInputs& call, const std::vector<ImageInputs>& images,
                   const std::vector<std::vector<int64_t>>& of_threads) {
  parallel(static_cast<int64_t>(of_threads.size()), 1, [&](int64_t begin, int64_t end) {
    Workspace workspace;
    for (int64_t thread = begin; thread < end; thread++) {
      for (const int64_t i : of_threads[static_cast<size_t>(thread)]) {
        run_phases(call.problem.operation, Image(call, images[static_cast<size_t>(i)], workspace, 0, 1));
      }
    }
  });
}

// sharing: for each image, how many of its size would make the work that is shared.
void execute_shared(const CallInputs& call, const std::vector<ImageInputs>& images, const std::vector<int64_t>& shared,
                    const std::vector<int64_t>& sharing) {
  std::vector<Workspace> workspaces(shared.size());
  std::vector<Image> own;
  own.reserve(shared.size());
  for (size_t i = 0; i < shared.size(); i++) {
    own.emplace_back(call, images[static_cast<size_t>(shared[i])], workspaces[i], sharing[i], thread_count());
  }
  run_phases(call.problem.operation, std::move(own));
}

}  // namespace

void execute_batch(const CallInputs& call, const std::vector<ImageInputs>& images) {
  const Division division = divide_equal_images(static_cast<int64_t>(images.size()), thread_count());
  execute_whole(call, images, division.whole);
  const std::vector<int64_t> sharing(division.shared.size(), static_cast<int64_t>(division.shared.size()));
  execute_shared(call, images, division.shared, sharing);
}

void execute_packed(const CallInputs& call, const std::vector<ImageInputs>& images) {
  std::vector<double> work;
  for (const ImageInputs& image : images) work.push_back(work_of(problem_of(call, image)));
  const Division division = divide_images(work, thread_count());
  execute_whole(call, images, division.whole);
  double total = 0;
  for (const int64_t i : division.shared) total += work[static_cast<size_t>(i)];
  std::vector<int64_t> sharing;
  for (const int64_t i : division.shared) {
    sharing.push_back(std::max<int64_t>(1, static_cast<int64_t>(total / work[static_cast<size_t>(i)])));
  }
  execute_shared(call, images, division.shared, sharing);
}

}  // namespace visionzip::cpu
