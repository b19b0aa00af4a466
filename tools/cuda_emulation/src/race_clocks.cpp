#include "race_clocks.h"

#include <algorithm>

namespace cuda_emulation::races {

namespace {

bool contains(const std::vector<uint64_t>& ids, uint64_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

void Union::add(const SharedTimes& times) {
  if (!times || contains(merged_, times->id)) return;
  merged_.push_back(times->id);
  for (size_t i = 0; i < times_.size(); i++) times_[i] = std::max(times_[i], times->of_thread[i]);
}

void Union::add(const Knowledge& knowledge) {
  add(knowledge.of_block);
  add(knowledge.acquired);
  for (unsigned l = 0; l < 32; l++) {
    const unsigned thread = knowledge.first_of_warp + l;
    if (knowledge.of_warp[l] > 0) times_[thread] = std::max(times_[thread], knowledge.of_warp[l]);
  }
  times_[knowledge.thread] = std::max(times_[knowledge.thread], knowledge.now);
}

SharedTimes Union::share() {
  static uint64_t next = 0;  // the race checker runs one block at a time
  return std::make_shared<const Times>(Times{next++, std::move(times_), std::move(merged_)});
}

SharedTimes unite(const SharedTimes& a, const SharedTimes& b) {
  if (!a || (b && contains(b->merged, a->id))) return b;
  if (!b || a == b || contains(a->merged, b->id)) return a;
  Union both(static_cast<unsigned>(a->of_thread.size()));
  both.add(a);
  both.add(b);
  return both.share();
}

}  // namespace cuda_emulation::races
