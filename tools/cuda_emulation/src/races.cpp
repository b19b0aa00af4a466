// Which accesses race (races.h).  One block runs at a time, so nothing here is locked.
#include "races.h"

#include <set>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "block.h"
#include "block_set.h"
#include "cuda_emulation/current.h"
#include "race_history.h"
#include "symbolize.h"

namespace cuda_emulation::races {

namespace {

bool writes(Access access) { return access != Access::kRead && access != Access::kAtomicRead; }
bool is_atomic(Access access) { return access == Access::kAtomicRead || access == Access::kAtomicWrite; }

struct Race {
  Record first, second;
  const void* address;
};

// Of the launch that is executed.
struct Checker {
  History history;
  uint32_t last_block_set = 0, first_block_set = 0;  // first_block_set: of this launch
  std::vector<std::vector<uint3>> blocks_of_set;     // their indices, from first_block_set on
  BlockSet* block_set = nullptr;                     // that is executed
  unsigned block_set_threads = 0;
  std::unordered_map<const void*, SharedTimes> released;  // by fenced atomics, at global addresses
  std::vector<Race> races;
  std::set<std::tuple<const void*, uint32_t, const void*, uint32_t>> reported;
};

Checker& checker() {
  static auto* one = new Checker;
  return *one;
}

// The block of the block set whose shared memory this is; null: it is global.
const Block* owner_of(const void* address) {
  const Block& own = *current.thread->block;
  if (own.memory->holds(address)) return &own;
  for (const auto& block : checker().block_set->blocks) {
    if (block->memory != nullptr && block->memory->holds(address)) return block.get();
  }
  return nullptr;
}

bool is_on_own_stack(const Thread& thread, const void* address) {
  const auto* at = static_cast<const char*>(address);
  const auto* bottom = static_cast<const char*>(thread.context.stack_bottom);
  return at >= bottom && at < bottom + thread.context.stack_size;
}

template <class T>
bool is_in(const void* address, const T& variable) {
  const auto* at = static_cast<const char*>(address);
  const auto* begin = reinterpret_cast<const char*>(&variable);
  return at >= begin && at < begin + sizeof variable;
}

bool is_built_in(const void* address) {
  return is_in(address, threadIdx) || is_in(address, blockIdx) || is_in(address, blockDim) || is_in(address, gridDim);
}

void report(const Record& first, const Record& second, uintptr_t address) {
  constexpr size_t kMost = 8;
  Checker& c = checker();
  const auto key = std::make_tuple(first.origin.where, first.origin.line, second.origin.where, second.origin.line);
  if (c.races.size() >= kMost || !c.reported.insert(key).second) return;
  c.races.push_back({first, second, reinterpret_cast<const void*>(address)});
}

bool is_ordered(const Record& old, const Record& now, const Knowledge& knowledge) {
  if (old.block_set != now.block_set) return false;
  // Until it completes, a copy is ordered before nothing, not even what the thread that issued it does.
  if (old.access == Access::kCopyIssue) return now.access == Access::kCopyCompletion && now.thread == old.thread;
  return knowledge.includes(old.thread, old.time);
}

// Compares an access to a word with those that it remembers, and remembers it.
void check_word(Word& word, const Record& now, const Knowledge& knowledge, const void* address,
                uintptr_t word_address) {
  Record* place = nullptr;
  for (Record& old : word) {
    // Another block set's accesses to what is shared memory are those of a block that used it before.
    const bool stale =
        old.block_set < checker().first_block_set || (old.block_set != now.block_set && owner_of(address) != nullptr);
    if (stale) {
      old.block_set = 0;
      place = &old;
      continue;
    }
    if ((old.bytes & now.bytes) == 0) continue;
    const bool ordered = is_ordered(old, now, knowledge);
    if (!ordered && (writes(old.access) || writes(now.access)) && !(is_atomic(old.access) && is_atomic(now.access))) {
      report(old, now, word_address);
    }
    // Whatever races with the old access then races with this one as well.
    const bool covered = (old.bytes & ~now.bytes) == 0 && (writes(now.access) || !writes(old.access)) &&
                         (!is_atomic(now.access) || is_atomic(old.access));
    if (ordered && covered) {
      old.block_set = 0;
      place = &old;
    }
  }
  static unsigned next = 0;
  (place != nullptr ? *place : word[next++ % word.size()]) = now;
}

std::string text_of(const Origin& origin) {
  if (origin.line == 0) return symbolize(origin.where);
  return std::string(static_cast<const char*>(origin.where)) + ":" + std::to_string(origin.line);
}

std::string text_of_thread(const Record& record) {
  const Checker& c = checker();
  const Launch& launch = c.block_set->launch;
  const unsigned per_block = launch.threads_per_block();
  const uint3 block = c.blocks_of_set[record.block_set - c.first_block_set][record.thread / per_block];
  const unsigned t = record.thread % per_block;
  char text[128];
  std::snprintf(text, sizeof text, "block (%u, %u, %u), thread (%u, %u, %u)", block.x, block.y, block.z,
                t % launch.block.x, t / launch.block.x % launch.block.y, t / (launch.block.x * launch.block.y));
  return text;
}

std::string text_of(const Record& record) {
  const char* what[] = {"read",         "write", "atomic read", "atomic write", "cp.async copy that was not waited for",
                        "cp.async copy"};
  return std::string(what[static_cast<int>(record.access)]) + " at " + text_of(record.origin) + ", " +
         text_of_thread(record);
}

}  // namespace

// --- launches ---

void begin_launch(const Launch&) {
  Checker& c = checker();
  c.first_block_set = c.last_block_set + 1;
  c.blocks_of_set.clear();
  c.races.clear();
  c.reported.clear();
}

void begin_block_set(BlockSet& block_set) {
  Checker& c = checker();
  c.last_block_set++;
  c.block_set = &block_set;
  c.block_set_threads = static_cast<unsigned>(block_set.blocks.size()) * block_set.launch.threads_per_block();
  c.released.clear();
  auto& indices = c.blocks_of_set.emplace_back();
  for (const auto& block : block_set.blocks) indices.push_back(block->index);
}

void end_block_set(Launch& launch) {
  Checker& c = checker();
  if (c.races.empty()) return;
  std::string text;
  for (const Race& race : c.races) {
    text += std::string(text.empty() ? "" : "\n") + "race: " + text_of(race.first) + "\n  and " + text_of(race.second) +
            "\n  touch the same bytes, and nothing orders them";
  }
  c.races.clear();
  launch.fail(text);
}

void start(Thread& thread) {
  thread.clock = {};
  Knowledge& knowledge = thread.clock.knowledge;
  knowledge.thread = thread.block->first_clock + thread.number;
  knowledge.first_of_warp = knowledge.thread - thread.lane();
}

// --- accesses ---

void access(const void* address, size_t bytes, Access access, Origin origin) {
  if (current.thread == nullptr) return;
  Thread& thread = *current.thread;
  if (is_on_own_stack(thread, address) || is_built_in(address)) return;
  if (const Block* owner = owner_of(address); owner != nullptr && owner->exited) {
    fail("access to the shared memory of a block of the cluster that has exited", text_of(origin));
  }
  const Knowledge& knowledge = thread.clock.knowledge;
  Checker& c = checker();
  Record record{origin, c.last_block_set, knowledge.thread, knowledge.now, 0, access};
  const auto begin = reinterpret_cast<uintptr_t>(address), end = begin + bytes;
  for (uintptr_t word = begin & ~uintptr_t{3}; word < end; word += 4) {
    record.bytes = 0;
    for (unsigned i = 0; i < 4; i++) {
      if (word + i >= begin && word + i < end) record.bytes |= static_cast<uint8_t>(1u << i);
    }
    check_word(c.history[word], record, knowledge, address, word);
  }
}

// --- what orders them ---

void block_barrier(Block& block) {
  Union all(checker().block_set_threads);
  for (const Thread& thread : block.threads) all.add(thread.clock.knowledge);
  const SharedTimes known = all.share();
  for (Thread& thread : block.threads) {
    Knowledge& knowledge = thread.clock.knowledge;
    knowledge.of_block = known;
    knowledge.acquired = nullptr;
    knowledge.of_warp = {};
    knowledge.now++;
  }
}

void sync_warp(Block& block, unsigned warp, unsigned lanes) {
  std::array<Time, 32> known{};
  SharedTimes acquired;
  const auto for_each = [&](const auto& f) {
    for (unsigned l = 0; l < 32; l++) {
      if ((lanes >> l & 1) != 0) f(l, block.threads[warp * 32 + l].clock.knowledge);
    }
  };
  for_each([&](unsigned l, const Knowledge& knowledge) {
    for (unsigned i = 0; i < 32; i++) known[i] = std::max(known[i], knowledge.of_warp[i]);
    known[l] = std::max(known[l], knowledge.now);
    acquired = unite(acquired, knowledge.acquired);
  });
  for_each([&](unsigned, Knowledge& knowledge) {
    knowledge.of_warp = known;
    knowledge.acquired = acquired;
    knowledge.now++;
  });
}

void cluster_arrive(Thread& thread, Arrival arrival) {
  if (arrival == Arrival::kRelaxed) return;
  ClusterClock& clock = thread.block->cluster.clock;
  if (!clock.arriving) clock.arriving = std::make_unique<Union>(checker().block_set_threads);
  clock.arriving->add(thread.clock.knowledge);
  thread.clock.knowledge.now++;
}

void cluster_complete(Cluster& cluster) {
  cluster.clock.completed = cluster.clock.arriving ? cluster.clock.arriving->share() : nullptr;
  cluster.clock.arriving = nullptr;
}

void cluster_wait(Thread& thread) {
  Knowledge& knowledge = thread.clock.knowledge;
  knowledge.acquired = unite(knowledge.acquired, thread.block->cluster.clock.completed);
}

void fence(Thread& thread) {
  ThreadClock& clock = thread.clock;
  clock.knowledge.acquired = unite(clock.knowledge.acquired, clock.read_by_atomics);
  clock.read_by_atomics = nullptr;
  clock.at_last_fence = std::make_unique<Knowledge>(clock.knowledge);
  clock.knowledge.now++;
}

void atomic_read(Thread& thread, const void* address, bool acquire) {
  const auto found = checker().released.find(address);
  if (found == checker().released.end()) return;
  ThreadClock& clock = thread.clock;
  SharedTimes& to = acquire ? clock.knowledge.acquired : clock.read_by_atomics;
  to = unite(to, found->second);
}

void atomic_write(Thread& thread, const void* address) {
  if (!thread.clock.at_last_fence || owner_of(address) != nullptr) return;
  SharedTimes& released = checker().released[address];
  Union all(checker().block_set_threads);
  all.add(released);
  all.add(*thread.clock.at_last_fence);
  released = all.share();
}

}  // namespace cuda_emulation::races
