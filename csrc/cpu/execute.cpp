// Who does what: whole images by one thread each, and the rest phase by phase by all threads.
#include "execute.h"

#include <algorithm>
#include <vector>

#include "parallel.h"

namespace visionzip::cpu {

namespace {

// One phase of several images: their units, one after another, are shared by all threads.
template <class Units, class Run>
void share_phase(std::vector<Image>& images, int64_t grain, const Units& units, const Run& run) {
  std::vector<int64_t> first{0};
  for (Image& image : images) first.push_back(first.back() + units(image));
  parallel(first.back(), grain, [&](int64_t begin, int64_t end) {
    for (size_t i = 0; i < images.size(); i++) {
      const int64_t from = std::max(begin, first[i]), to = std::min(end, first[i + 1]);
      if (from < to) run(images[i], from - first[i], to - first[i]);
    }
  });
}

template <class Visit>
void for_each_phase(const CpuPlan& plan, const Visit& visit) {
  visit(
      plan.key_tokens, [](const Image& i) { return i.key_units(); },
      [](Image& i, int64_t begin, int64_t end) { i.read_keys(begin, end); });
  visit(
      1, [](const Image& i) { return i.sum_units(); },
      [](Image& i, int64_t begin, int64_t end) { i.sum_columns(begin, end); });
  visit(
      1, [](const Image& i) { return i.decide_units(); },
      [](Image& i, int64_t begin, int64_t end) { i.decide(begin, end); });
  visit(
      plan.key_tokens, [](const Image& i) { return i.assign_units(); },
      [](Image& i, int64_t begin, int64_t end) { i.assign(begin, end); });
  visit(1, [](Image& i) { return i.merge_units(); }, [](Image& i, int64_t begin, int64_t end) { i.merge(begin, end); });
}

}  // namespace

void execute(const Problem& problem, const DecisionInputs* decision, const MergeInputs* merge) {
  const CpuPlan plan = plan_cpu(problem, thread_count());

  parallel(plan.whole_images, 1, [&](int64_t begin, int64_t end) {
    Image image(problem, plan, /*shared=*/false, decision, merge);
    for (int64_t i = begin; i < end; i++) {
      image.start(i);
      for_each_phase(plan, [&](int64_t /*grain*/, const auto& units, const auto& run) {
        if (const int64_t n = units(image)) run(image, 0, n);
      });
    }
  });

  std::vector<Image> images;
  images.reserve(static_cast<size_t>(plan.shared_images));
  for (int64_t i = plan.whole_images; i < problem.B; i++) {
    images.emplace_back(problem, plan, /*shared=*/true, decision, merge);
    images.back().start(i);
  }
  for_each_phase(plan,
                 [&](int64_t grain, const auto& units, const auto& run) { share_phase(images, grain, units, run); });
}

}  // namespace visionzip::cpu
