// torch's own thread pool, out of which exceptions come unchanged.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <exception>
#include <mutex>

namespace visionzip::cpu {

// f(begin, end) over parts of [0, n), each of `grain_size` units at least.
template <class F>
void parallel(int64_t n, int64_t grain_size, const F& f) {
  if (n == 0) return;
  if (n <= grain_size) return f(0, n);
  std::exception_ptr failure;
  std::mutex mutex;
  torch::stable::parallel_for(0, n, grain_size, [&](int64_t begin, int64_t end) {
    try {
      f(begin, end);
    } catch (...) {  // torch's C interface would keep the error code and lose the words
      const std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  });
  if (failure) std::rethrow_exception(failure);
}

inline int64_t thread_count() { return static_cast<int64_t>(torch::stable::get_num_threads()); }

}  // namespace visionzip::cpu
