#include "checks/argument_checks.h"

#include <stdexcept>
#include <utility>

namespace visionzip {

namespace {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;

std::string list(const std::vector<std::string>& items) {
  std::string out;
  for (size_t i = 0; i < items.size(); i++) {
    out += i ? ", " : "(";
    out += items[i];
  }
  return out.append(items.empty() ? "()" : ")");
}

std::string one_of(const std::vector<std::string>& words) {
  std::string out = words[0];
  for (size_t i = 1; i < words.size(); i++) out += (i + 1 == words.size() ? " or " : ", ") + words[i];
  return out;
}

std::string dtype_name(ScalarType dtype) {
  static constexpr std::pair<ScalarType, const char*> kNames[] = {
      {ScalarType::Float, "float32"},
      {ScalarType::Half, "float16"},
      {ScalarType::BFloat16, "bfloat16"},
      {ScalarType::Double, "float64"},
      {ScalarType::Long, "int64"},
      {ScalarType::Int, "int32"},
      {ScalarType::Short, "int16"},
      {ScalarType::Char, "int8"},
      {ScalarType::Byte, "uint8"},
      {ScalarType::UInt16, "uint16"},
      {ScalarType::UInt32, "uint32"},
      {ScalarType::UInt64, "uint64"},
      {ScalarType::Bool, "bool"},
      {ScalarType::ComplexHalf, "complex32"},
      {ScalarType::ComplexFloat, "complex64"},
      {ScalarType::ComplexDouble, "complex128"},
      {ScalarType::Float8_e5m2, "float8_e5m2"},
      {ScalarType::Float8_e4m3fn, "float8_e4m3fn"},
      {ScalarType::Float8_e5m2fnuz, "float8_e5m2fnuz"},
      {ScalarType::Float8_e4m3fnuz, "float8_e4m3fnuz"},
      {ScalarType::Float8_e8m0fnu, "float8_e8m0fnu"},
  };
  for (const auto& [known, name] : kNames) {
    if (known == dtype) return name;
  }
  return torch::headeronly::toString(dtype);
}

// Tensor::scalar_type refuses dtypes that are newer than the ABI that we target; the numbers of dtypes never change.
ScalarType scalar_type_of(const Tensor& x) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(x.get(), &dtype));
  return static_cast<ScalarType>(dtype);
}

std::pair<int32_t, int32_t> device_of(const Tensor& x) {
  int32_t type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &type));
  return {type, x.get_device_index()};
}

std::string device_name(const Tensor& x) {
  static constexpr std::pair<DeviceType, const char*> kNames[] = {
      {DeviceType::CPU, "cpu"},
      {DeviceType::CUDA, "cuda"},
      {DeviceType::Meta, "meta"},
      {DeviceType::MPS, "mps"},
      {DeviceType::XPU, "xpu"},
      {DeviceType::HPU, "hpu"},
      {DeviceType::MTIA, "mtia"},
      {DeviceType::XLA, "xla"},
      {DeviceType::HIP, "hip"},
      {DeviceType::IPU, "ipu"},
      {DeviceType::PrivateUse1, "privateuseone"},
  };
  const auto [type, index] = device_of(x);
  std::string name = "device type " + std::to_string(type);
  for (const auto& [known, word] : kNames) {
    if (static_cast<int32_t>(known) == type) name = word;
  }
  const bool has_index = index >= 0 && type != static_cast<int32_t>(DeviceType::CPU);
  return has_index ? name + ":" + std::to_string(index) : name;
}

}  // namespace

void fail(const char* op, const std::string& words) {
  throw std::runtime_error("visionzip::" + std::string(op) + ": " + words);
}

std::string shape_of(const Tensor& x) {
  std::vector<std::string> sizes;
  for (int64_t d = 0; d < x.dim(); d++) sizes.push_back(std::to_string(x.size(d)));
  return list(sizes);
}

void check_rank(const char* op, const Named& x, std::initializer_list<Rank> ranks) {
  std::vector<std::string> words;
  for (const Rank& rank : ranks) {
    if (x.tensor.dim() == rank.dimensions) return;
    words.emplace_back(rank.words);
  }
  fail(op, std::string(x.name) + " has shape " + shape_of(x.tensor) + "; expected " + one_of(words));
}

void check_dtype(const char* op, const Named& x, std::initializer_list<ScalarType> allowed) {
  const ScalarType dtype = scalar_type_of(x.tensor);
  std::vector<std::string> words;
  for (const ScalarType type : allowed) {
    if (type == dtype) return;
    words.push_back(dtype_name(type));
  }
  fail(op, std::string(x.name) + " has dtype " + dtype_name(dtype) + "; expected " + one_of(words));
}

void check_floating(const char* op, std::initializer_list<Named> tensors) {
  for (const Named& x : tensors) check_dtype(op, x, {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16});
}

void check_same_device(const char* op, const Named& first, std::initializer_list<Named> others) {
  for (const Named& x : others) {
    if (device_of(x.tensor) == device_of(first.tensor)) continue;
    fail(op, std::string(x.name) + " is on " + device_name(x.tensor) + " but " + first.name + " is on " +
                 device_name(first.tensor) + "; expected all tensors on the same device");
  }
}

void check_fits(const char* op, const Named& x, const Named& base, const std::vector<Size>& expected,
                const std::string& suffix) {
  bool fits = x.tensor.dim() == static_cast<int64_t>(expected.size());
  std::vector<std::string> words;
  for (size_t d = 0; d < expected.size(); d++) {
    fits = fits && expected[d].accepts(x.tensor.size(static_cast<int64_t>(d)));
    words.push_back(expected[d].words());
  }
  if (fits) return;
  fail(op, std::string(x.name) + " has shape " + shape_of(x.tensor) + ", which does not fit " + base.name +
               " of shape " + shape_of(base.tensor) + "; expected " + list(words) + suffix);
}

}  // namespace visionzip
