#include "block.h"

#include <algorithm>
#include <cstring>

#include "block_set.h"
#include "cuda_emulation/current.h"

namespace cuda_emulation {

namespace {

bool same(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

std::string text_of(uint3 index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

std::string hexadecimal(unsigned mask) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

void run_thread() {
  enter_context();
  Thread& thread = *current.thread;
  thread.block->launch.kernel();
  thread.block->exit(thread);
}

}  // namespace

std::string text_of(const Site& site) { return std::string(site.file_name()) + ":" + std::to_string(site.line()); }

std::string name_of(const Thread& thread) {
  return "block " + text_of(thread.block->index) + ", thread " + text_of(thread.index);
}

void fail(const std::string& what, const std::string& place) {
  Thread& thread = *current.thread;
  thread.block->launch.fail(what + "\n  at " + place + ", " + name_of(thread));
  // The block's scheduler sees that the launch has failed, and resumes no thread any more.
  for (;;) thread.block->suspend(thread, State::kReady, Site::current());
}

void fail(const std::string& what, Site site) { fail(what, text_of(site)); }

void fail(const char* what, Site site) { fail(std::string(what), site); }

Block::Block(Launch& launch, Cluster& cluster, unsigned rank, uint3 index, uint64_t seed, unsigned first_clock)
    : launch(launch),
      cluster(cluster),
      rank(rank),
      index(index),
      first_clock(first_clock),
      threads(launch.threads_per_block()),
      random(seed),
      warps_((threads.size() + 31) / 32),
      order_(threads.size()),
      live_(static_cast<unsigned>(threads.size())) {}

void Block::start(Stacks& stacks, SharedMemory& shared) {
  memory = &shared;
  memory->set_accessible(true);
  memory->make_uninitialized();
  scheduler_ = context_of_this_thread();
  current.thread = nullptr;
  blockIdx = index;
  blockDim = launch.block;
  gridDim = launch.grid;
  for (unsigned i = 0; i < threads.size(); i++) {
    Thread& thread = threads[i];
    thread.block = this;
    thread.number = i;
    thread.index = {i % launch.block.x, i / launch.block.x % launch.block.y, i / (launch.block.x * launch.block.y)};
    thread.state = State::kReady;
    thread.context = new_context(stacks[i], run_thread);
    warps_[thread.warp()].lanes |= 1u << thread.lane();
    warps_[thread.warp()].live |= 1u << thread.lane();
    order_[i] = i;
    races::start(thread);
  }
}

void Block::finish() {
  exited = true;
  // Touched from now on by another block of the cluster, it is an error that AddressSanitizer reports.
  if (memory != nullptr) memory->set_accessible(false);
}

bool Block::has_ready() const {
  return std::any_of(threads.begin(), threads.end(), [](const Thread& t) { return t.state == State::kReady; });
}

void Block::run_round() {
  const bool shuffled = launch.settings.seed != 0;
  if (shuffled) {
    for (unsigned i = static_cast<unsigned>(order_.size()); i > 1; i--) {
      std::swap(order_[i - 1], order_[random.below(i)]);
    }
  }
  for (const unsigned i : order_) {
    // Some are left behind now and then, so that warps drift apart.
    if (threads[i].state != State::kReady || (shuffled && random.once_in(8))) continue;
    resume(threads[i]);
    if (launch.failed()) return;
  }
}

void Block::resume(Thread& thread) {
  current.thread = &thread;
  threadIdx = thread.index;
  thread.busy_steps = 0;
  switch_context(scheduler_, thread.context);
  current.thread = nullptr;
}

void Block::suspend(Thread& thread, State state, Site site) {
  thread.state = state;
  thread.site = site;
  switch_context(thread.context, scheduler_, state == State::kExited ? Leaving::kForGood : Leaving::kForNow);
}

// --- the block's barrier ---

unsigned Block::barrier(Thread& thread, bool predicate, Site site) {
  if (live_ < threads.size()) {
    fail("block barrier: " + std::to_string(threads.size() - live_) + " of " + std::to_string(threads.size()) +
             " threads have left the kernel",
         site);
  }
  if (barrier_.arrived == 0) {
    barrier_.site = site;
    barrier_.true_count = 0;
  } else if (!same(barrier_.site, site)) {
    fail("divergent barrier: other threads of the block wait at " + text_of(barrier_.site), site);
  }
  barrier_.arrived++;
  barrier_.true_count += predicate;
  if (barrier_.arrived < live_) {
    suspend(thread, State::kAtBlockBarrier, site);
    return barrier_.result;
  }
  barrier_.result = barrier_.true_count;
  barrier_.arrived = 0;
  races::block_barrier(*this);
  for (Thread& other : threads) {
    if (other.state == State::kAtBlockBarrier) other.state = State::kReady;
  }
  cluster.block_set->note_progress();
  return barrier_.result;
}

// --- collectives of a warp ---

void Block::run_collective(Thread& thread, unsigned mask, Collective kind, void* argument,
                           void (*complete)(void**, unsigned), Site site) {
  Warp& warp = warps_[thread.warp()];
  const unsigned lane = 1u << thread.lane();
  if ((mask & lane) == 0) fail("warp collective: the calling lane is not in its mask " + hexadecimal(mask), site);
  if (const unsigned gone = mask & warp.lanes & ~warp.live; gone != 0) {
    fail("warp collective: its mask " + hexadecimal(mask) + " names lanes that have left the kernel, " +
             hexadecimal(gone),
         site);
  }
  const unsigned expected = mask & warp.lanes;  // lanes that a last warp does not have are not waited for
  auto collective = std::find_if(warp.collectives.begin(), warp.collectives.end(),
                                 [mask](const PendingCollective& m) { return m.mask == mask; });
  if (collective == warp.collectives.end()) {
    warp.collectives.push_back({mask, 0, kind, site, {}});
    collective = warp.collectives.end() - 1;
  } else if (collective->kind != kind || (kind != Collective::kSync && !same(collective->site, site))) {
    // Lanes may come to __syncwarp from different places, and to nothing else.
    fail("divergent warp collective: other lanes of its mask wait at " + text_of(collective->site), site);
  }
  collective->arguments[thread.lane()] = argument;
  collective->arrived |= lane;
  if (collective->arrived != expected) {
    thread.mask = mask;
    suspend(thread, State::kAtCollective, site);
    return;
  }
  PendingCollective done = *collective;
  warp.collectives.erase(collective);
  if (complete != nullptr) complete(done.arguments.data(), done.arrived);
  if (kind == Collective::kSync) races::sync_warp(*this, thread.warp(), done.arrived);
  for (unsigned l = 0; l < 32; l++) {
    if ((done.arrived >> l & 1) != 0) threads[thread.warp() * 32 + l].state = State::kReady;
  }
  cluster.block_set->note_progress();
}

// --- the end of a thread ---

void Block::exit(Thread& thread) {
  if (barrier_.arrived > 0) {
    fail("a thread leaves the kernel while others of its block wait at the barrier", barrier_.site);
  }
  Warp& warp = warps_[thread.warp()];
  for (const PendingCollective& collective : warp.collectives) {
    if ((collective.mask >> thread.lane() & 1) == 0) continue;
    fail("a lane leaves the kernel while others of mask " + hexadecimal(collective.mask) + " wait for it",
         collective.site);
  }
  cluster.exit(thread);
  warp.live &= ~(1u << thread.lane());
  live_--;
  cluster.block_set->note_progress();
  suspend(thread, State::kExited, Site::current());
}

// --- diagnosis ---

std::string Block::waiting_threads() const {
  std::string text;
  constexpr unsigned kMost = 6;  // of each block
  unsigned listed = 0, waiting = 0;
  const Thread* last = nullptr;
  for (const Thread& thread : threads) {
    if (thread.state == State::kExited) continue;
    waiting++;
    // Of threads that wait for the same, one speaks for all.
    if (last != nullptr && last->state == thread.state && same(last->site, thread.site) && last->mask == thread.mask) {
      continue;
    }
    last = &thread;
    if (++listed > kMost) continue;
    const char* where[] = {"does nothing but let others run", "waits at a block barrier", "waits at a warp collective",
                           "waits at a cluster barrier", ""};
    text += "\n  " + name_of(thread) + " " + where[static_cast<int>(thread.state)];
    if (thread.state == State::kAtCollective) text += " of mask " + hexadecimal(thread.mask);
    text += ", " + text_of(thread.site);
  }
  return text + "\n  block " + text_of(index) + ": " + std::to_string(waiting) + " of " +
         std::to_string(threads.size()) + " threads have not left the kernel";
}

}  // namespace cuda_emulation
