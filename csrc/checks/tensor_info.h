// What the checks see of a tensor.  No torch header: checks also run where there is no tensor (visionzip_ext._C).
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "common/types.h"

namespace torch::stable {
class Tensor;
}

namespace visionzip {

using torch::stable::Tensor;

// All names are torch's: "strided", "float32", "cuda".  It points to what it describes.
struct TensorInfo {
  std::string_view layout = "None";  // where nothing is in a tensor's place
  std::string_view dtype{}, device{};
  int32_t device_index = -1;  // none
  std::span<const int64_t> sizes{};

  TensorInfo() = default;
  TensorInfo(std::string_view layout, std::string_view dtype, std::string_view device, int32_t device_index,
             std::span<const int64_t> sizes)
      : layout(layout), dtype(dtype), device(device), device_index(device_index), sizes(sizes) {}
  TensorInfo(const Tensor& tensor);  // NOLINT(google-explicit-constructor): a tensor is checked as it is

  int64_t dim() const { return static_cast<int64_t>(sizes.size()); }
  int64_t size(int64_t d) const { return sizes[static_cast<size_t>(d)]; }
};

DType dtype_of(const Tensor& tensor);  // of a checked tensor

}  // namespace visionzip
