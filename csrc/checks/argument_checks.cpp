#include "checks/argument_checks.h"

#include <algorithm>
#include <stdexcept>
#include <utility>
#include <vector>

namespace visionzip {

namespace {

constexpr std::string_view kFloat32 = "float32", kFloat16 = "float16", kBFloat16 = "bfloat16";

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

std::string device_of(const TensorInfo& x) {
  const std::string type(x.device);
  return x.device_index < 0 ? type : type + ":" + std::to_string(x.device_index);
}

bool fits(std::span<const int64_t> sizes, std::initializer_list<Size> expected) {
  return std::equal(expected.begin(), expected.end(), sizes.begin(),
                    [](const Size& size, int64_t given) { return size.accepts(given); });
}

std::string expected_shape(const TensorInfo& x, std::initializer_list<Size> expected) {
  std::vector<std::string> words;
  for (const Size& size : expected) words.push_back(size.words());
  for (int64_t d = static_cast<int64_t>(expected.size()); d < x.dim(); d++) words.push_back(std::to_string(x.size(d)));
  return list(words);
}

// What to do where two neighbouring dimensions have changed places.
std::string remedy_of(const Named& x, std::initializer_list<Size> expected, size_t swappable) {
  std::vector<int64_t> sizes(x.tensor.sizes.begin(), x.tensor.sizes.end());
  for (size_t d = swappable; d + 1 < expected.size(); d++) {
    const Size *size = expected.begin() + d, *next = size + 1;
    if (size->letter && next->letter) continue;
    std::swap(sizes[d], sizes[d + 1]);
    if (fits(sizes, expected)) {
      return ": " + std::string(x.name) + ".transpose(" + std::to_string(d) + ", " + std::to_string(d + 1) + ") fits";
    }
    std::swap(sizes[d], sizes[d + 1]);
  }
  return "";
}

}  // namespace

void fail(const char* op, const std::string& words) {
  throw std::runtime_error("visionzip::" + std::string(op) + ": " + words);
}

std::string shape_of(const TensorInfo& x) {
  std::vector<std::string> words;
  for (const int64_t size : x.sizes) words.push_back(std::to_string(size));
  return list(words);
}

void check_strided(const char* op, std::initializer_list<Named> tensors) {
  for (const auto& [name, tensor] : tensors) {
    if (tensor.layout == "strided") continue;
    const std::string layout(tensor.layout);
    fail(op, std::string(name) + " is " + (layout == "None" ? layout : "a tensor of layout " + layout) +
                 "; expected a strided tensor");
  }
}

void check_rank(const char* op, const Named& x, std::initializer_list<Rank> ranks, const char* remedy) {
  for (const Rank& rank : ranks) {
    if (x.tensor.dim() == rank.dimensions) return;
  }
  std::vector<std::string> words;
  for (const Rank& rank : ranks) words.emplace_back(rank.words);
  const bool helps = remedy && x.tensor.dim() + 1 == ranks.begin()->dimensions;
  const std::string name = x.name;
  fail(op, name + " has shape " + shape_of(x.tensor) + "; expected " + one_of(words) +
               (helps ? ": " + name + "." + remedy : ""));
}

void check_dtype(const char* op, const Named& x, std::initializer_list<std::string_view> allowed) {
  if (std::find(allowed.begin(), allowed.end(), x.tensor.dtype) != allowed.end()) return;
  const std::vector<std::string> words(allowed.begin(), allowed.end());
  fail(op, std::string(x.name) + " has dtype " + std::string(x.tensor.dtype) + "; expected " + one_of(words));
}

void check_floating(const char* op, std::initializer_list<Named> tensors) {
  for (const Named& x : tensors) check_dtype(op, x, {kFloat32, kFloat16, kBFloat16});
}

void check_same_device(const char* op, const Named& first, std::initializer_list<Named> others) {
  for (const Named& x : others) {
    if (x.tensor.device == first.tensor.device && x.tensor.device_index == first.tensor.device_index) continue;
    fail(op, std::string(x.name) + " is on " + device_of(x.tensor) + " but " + first.name + " is on " +
                 device_of(first.tensor) + "; expected all tensors on the same device");
  }
}

void check_fits(const char* op, const Named& x, const Named& base, std::initializer_list<Size> expected,
                size_t swappable, const std::string& suffix) {
  if (fits(x.tensor.sizes, expected)) return;
  fail(op, std::string(x.name) + " has shape " + shape_of(x.tensor) + ", which does not fit " + base.name +
               " of shape " + shape_of(base.tensor) + "; expected " + expected_shape(x.tensor, expected) + suffix +
               remedy_of(x, expected, swappable));
}

}  // namespace visionzip
