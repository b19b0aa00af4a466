#include "async_copies.h"

#include <cstring>

#include "block.h"
#include "cuda_emulation/current.h"
#include "races.h"

namespace cuda_emulation {

namespace {

void deliver(const AsyncCopies::Copy& copy) { std::memcpy(copy.to, copy.from, copy.bytes); }

}  // namespace

void AsyncCopies::commit() {
  groups_.push_back(pending_.size() - committed_);
  committed_ = pending_.size();
}

void AsyncCopies::complete_all_but(size_t groups) {
  size_t copies = 0;
  while (groups_.size() > groups) {
    copies += groups_.front();
    groups_.erase(groups_.begin());
  }
  for (size_t i = 0; i < copies; i++) complete(pending_[i]);
  pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(copies));
  committed_ -= copies;
}

void AsyncCopies::complete(const Copy& copy) {
  races::access(copy.from, copy.bytes, races::Access::kRead, races::origin(copy.site));
  races::access(copy.to, copy.bytes, races::Access::kCopyCompletion, races::origin(copy.site));
  deliver(copy);
}

void copy_async(void* shared, const void* global, unsigned bytes, Site site) {
  if (bytes != 4 && bytes != 8 && bytes != 16) fail("cp.async copies 4, 8 or 16 bytes", site);
  check_aligned(shared, bytes, site);
  check_aligned(global, bytes, site);
  Thread& thread = *current.thread;
  Block& block = *thread.block;
  if (!block.memory->holds(shared)) fail("cp.async: the destination is not in this block's shared memory", site);
  const AsyncCopies::Copy copy{shared, global, bytes, site};
  races::access(shared, bytes, races::Access::kCopyIssue, races::origin(site));
  // Late finds a missing wait.  In a random schedule some are early (and, which makes no difference, late as well).
  if (block.launch.settings.seed != 0 && block.random.once_in(3)) deliver(copy);
  thread.copies.add(copy);
}

void commit_copies() { current.thread->copies.commit(); }

void wait_for_copies(unsigned groups_that_may_be_pending) {
  current.thread->copies.complete_all_but(groups_that_may_be_pending);
}

}  // namespace cuda_emulation
