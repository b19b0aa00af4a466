// Who does what: whole images by one thread each, and the rest phase by phase by all threads.
#include "cpu/torch/execute.h"

#include <algorithm>

#include "cpu/torch/parallel.h"

namespace visionzip::cpu {

namespace {

struct Phase {
  bool by_token;  // units are tokens, of which a few are not worth a thread
  int64_t (*units)(Image&);
  int64_t (*work)(const Image&);  // of one unit, as compared with another image's
  void (*run)(Image&, int64_t begin, int64_t end);
};

constexpr Phase kPhases[] = {
    {true, [](Image& i) { return i.key_units(); }, [](const Image&) { return int64_t{1}; },
     [](Image& i, int64_t begin, int64_t end) { i.read_keys(begin, end); }},
    {false, [](Image& i) { return i.sum_units(); }, [](const Image& i) { return i.sum_work(); },
     [](Image& i, int64_t begin, int64_t end) { i.sum_columns(begin, end); }},
    {false, [](Image& i) { return i.decide_units(); }, [](const Image& i) { return i.decide_work(); },
     [](Image& i, int64_t begin, int64_t end) { i.decide(begin, end); }},
    {true, [](Image& i) { return i.assign_units(); }, [](const Image& i) { return i.assign_work(); },
     [](Image& i, int64_t begin, int64_t end) { i.assign(begin, end); }},
    {false, [](Image& i) { return i.merge_units(); }, [](const Image& i) { return i.merge_work(); },
     [](Image& i, int64_t begin, int64_t end) { i.merge(begin, end); }},
};

// One image's part of a phase that several share: its units lie one after another on a line of work.
struct Stretch {
  int64_t first, units, work;

  // The first unit whose middle is not before `position`, so that each has one owner among neighbouring ranges.
  int64_t unit_at(int64_t position) const {
    const int64_t unit = (position - first - work / 2 + work - 1) / work;
    return position <= first ? 0 : std::clamp(unit, int64_t{0}, units);
  }
};

// The images' units, one after another, are shared by all threads, in parts of about equal work.
void share_phase(std::vector<Image>& images, const Phase& phase) {
  std::vector<Stretch> line;
  int64_t units = 0, work = 0;
  for (Image& image : images) {
    const int64_t own = phase.units(image);
    line.push_back({work, own, own ? phase.work(image) : 1});
    units += own;
    work += own * line.back().work;
  }
  if (units == 0) return;
  const int64_t grain = phase.by_token ? images[0].token_grain() : 1;
  parallel(work, grain * work / units, [&](int64_t begin, int64_t end) {
    for (size_t i = 0; i < images.size(); i++) {
      const int64_t from = line[i].unit_at(begin), to = line[i].unit_at(end);
      if (from < to) phase.run(images[i], from, to);
    }
  });
}

void execute_whole(const CallInputs& call, const std::vector<ImageInputs>& images,
                   const std::vector<std::vector<int64_t>>& of_threads) {
  parallel(static_cast<int64_t>(of_threads.size()), 1, [&](int64_t begin, int64_t end) {
    Image image(call);
    for (int64_t thread = begin; thread < end; thread++) {
      for (const int64_t i : of_threads[static_cast<size_t>(thread)]) {
        image.start(images[static_cast<size_t>(i)], 0, 1);
        for (const Phase& phase : kPhases) {
          if (const int64_t n = phase.units(image)) phase.run(image, 0, n);
        }
      }
    }
  });
}

// sharing: for each image, how many of its size would make the work that is shared.
void execute_shared(const CallInputs& call, const std::vector<ImageInputs>& images, const std::vector<int64_t>& shared,
                    const std::vector<int64_t>& sharing) {
  std::vector<Image> started;
  started.reserve(shared.size());
  for (size_t i = 0; i < shared.size(); i++) {
    started.emplace_back(call).start(images[static_cast<size_t>(shared[i])], sharing[i], thread_count());
  }
  for (const Phase& phase : kPhases) share_phase(started, phase);
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
  for (const ImageInputs& image : images) {
    Problem problem = call.problem;
    problem.S = image.S;
    problem.k = image.k;
    problem.m = image.m;
    work.push_back(work_of(problem));
  }
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
