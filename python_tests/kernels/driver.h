// What the cases of the kernel driver share: memory, random numbers and elements.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/types.h"
#include "cuda/kernels/place.h"

namespace visionzip::kernel_tests {

// Elements of a dtype that is known at run time, in memory of exactly their size, for AddressSanitizer.
class Elements {
 public:
  Elements(DType dtype, int64_t count) : dtype_(dtype), count_(count) {
    const size_t bytes = static_cast<size_t>(count) * size_of(dtype);
    if (posix_memalign(&data_, 16, bytes) != 0) throw std::bad_alloc();
    std::memset(data_, 0xff, bytes);  // NaN: what is not written must show
  }
  Elements(const Elements&) = delete;
  Elements& operator=(const Elements&) = delete;
  ~Elements() { std::free(data_); }

  void* data() const { return data_; }
  int64_t count() const { return count_; }
  size_t bytes() const { return static_cast<size_t>(count_) * size_of(dtype_); }

  double operator[](int64_t i) const {
    switch (dtype_) {
      case DType::kFloat16:
        return __half2float(static_cast<const __half*>(data_)[i]);
      case DType::kBFloat16:
        return __bfloat162float(static_cast<const __nv_bfloat16*>(data_)[i]);
      default:
        return static_cast<const float*>(data_)[i];
    }
  }

  void set(int64_t i, float x) {
    switch (dtype_) {
      case DType::kFloat16:
        static_cast<__half*>(data_)[i] = __float2half_rn(x);
        break;
      case DType::kBFloat16:
        static_cast<__nv_bfloat16*>(data_)[i] = __float2bfloat16_rn(x);
        break;
      default:
        static_cast<float*>(data_)[i] = x;
    }
  }

 private:
  DType dtype_;
  int64_t count_;
  void* data_ = nullptr;
};

using Numbers = std::mt19937;

inline void fill_normal(Elements& elements, Numbers& numbers) {
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < elements.count(); i++) elements.set(i, normal(numbers));
}

// Relative to 1 + |expected|: a few roundings to the dtype.
inline double tolerance_of(DType dtype) {
  return dtype == DType::kFloat32 ? 4e-6 : dtype == DType::kFloat16 ? 2e-3 : 1.6e-2;
}

inline bool is_near(double actual, double expected, DType dtype) {
  return std::abs(actual - expected) <= tolerance_of(dtype) * (1 + std::abs(expected));
}

inline const char* name_of(DType dtype) {
  return dtype == DType::kFloat32 ? "float32" : dtype == DType::kFloat16 ? "float16" : "bfloat16";
}

inline const char* name_of(MergeMode mode) { return mode == MergeMode::kMean ? "mean" : "residual"; }

// What a decision (the assignment of one image: docs/specification.md) says about merging.
struct Rows {
  std::vector<int64_t> target;               // the representative of each row, or -1
  std::vector<std::vector<int64_t>> merged;  // and those that are averaged into it
};

inline Rows rows_of(const int64_t* assignment, int64_t S, int64_t k, int64_t m) {
  Rows rows{std::vector<int64_t>(static_cast<size_t>(k + m), -1),
            std::vector<std::vector<int64_t>>(static_cast<size_t>(k + m))};
  int64_t remaining = 0;
  const bool rowless = m > 0 && assignment[0] < 0;  // CLS, which then does not remain
  const int64_t step = target_step(S - k - rowless, m);
  for (int64_t s = 0; s < S; s++) {
    const int64_t row = assignment[s];
    if (row < 0) continue;
    const bool kept = row < k, target = !kept && remaining % step == 0 && remaining / step == row - k;
    remaining += !kept;
    if (kept || target) {
      rows.target[static_cast<size_t>(row)] = s;
    } else {
      rows.merged[static_cast<size_t>(row)].push_back(s);
    }
  }
  return rows;
}

// One row of the result in float64; x(s) is a channel of token s.
template <class X>
double merged_value(const Rows& rows, int64_t row, MergeMode mode, const X& x) {
  const auto& merged = rows.merged[static_cast<size_t>(row)];
  double sum = 0;
  for (const int64_t s : merged) sum += x(s);
  const double own = x(rows.target[static_cast<size_t>(row)]), n = static_cast<double>(merged.size());
  if (mode == MergeMode::kMean) return (own + sum) / (n + 1);
  return own + (merged.empty() ? 0 : sum / n);
}

// Where packed sequences of these lengths lie, as the kernel says that is for it.
struct Placement {
  std::vector<int32_t> cu_seqlens{0}, order, row_starts;
  std::vector<cuda::Sequence> sequences;

  Placement(const std::vector<int32_t>& lengths, const std::vector<int64_t>& k, const std::vector<int64_t>& m,
            bool keep_cls = true)
      : order(lengths.size(), -1), row_starts(lengths.size() + 1, -1), sequences(lengths.size()) {
    int32_t longest = 0;
    for (const int32_t length : lengths) {
      cu_seqlens.push_back(cu_seqlens.back() + length);
      longest = std::max(longest, length);
    }
    const cuda::Packing packing{cu_seqlens.data(), static_cast<int32_t>(lengths.size()), cu_seqlens.back(), longest,
                                keep_cls ? 0 : 1};
    const cudaError_t error =
        cuda::launch_place(packing, k, m, {sequences.data(), order.data(), row_starts.data()}, nullptr);
    if (error != cudaSuccess) throw std::runtime_error(std::string("place: ") + cudaGetErrorString(error));
  }
};

// Each runs its cases; throws std::runtime_error where one goes wrong.  Returns how many launches, or plans, there
// were.
int run_column_sums_cases();
int run_long_column_sums_cases();
int run_merge_cases();
int run_packed_cases();
int run_plan_cases();
int run_zip_cases();

}  // namespace visionzip::kernel_tests
