// Uninitialised memory, aligned to a cache line, that is kept between uses.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace visionzip::cpu {

class Buffer {
 public:
  // At least n floats; the contents are undefined.
  float* floats(int64_t n) {
    if (n > capacity_) {
      data_.reset(static_cast<float*>(::operator new(static_cast<size_t>(n) * sizeof(float), kLine)));
      capacity_ = n;
    }
    return data_.get();
  }
  float* get() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(float* p) const { ::operator delete(p, kLine); }
  };
  std::unique_ptr<float, Free> data_;
  int64_t capacity_ = 0;
};

}  // namespace visionzip::cpu
