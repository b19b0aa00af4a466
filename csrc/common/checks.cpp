#include "checks.h"

#include <stdexcept>
#include <utility>

namespace visionzip {

namespace {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;

struct Named {
  const char* name;
  const Tensor& tensor;
};

// A rank that an argument may have, and the shape's usual name.
struct Rank {
  int64_t dimensions;
  const char* words;
};

// An expected size: a number, or a letter that stands for any ("H": at least one).
struct Size {
  Size(int64_t number) : number(number) {}      // NOLINT(google-explicit-constructor)
  Size(const char* letter) : letter(letter) {}  // NOLINT(google-explicit-constructor)
  int64_t number = -1;
  const char* letter = nullptr;

  bool accepts(int64_t size) const { return letter ? *letter != 'H' || size > 0 : size == number; }
  std::string words() const { return letter ? letter : std::to_string(number); }
};

[[noreturn]] void fail(const char* op, const std::string& words) {
  throw std::runtime_error("visionzip::" + std::string(op) + ": " + words);
}

std::string list(const std::vector<std::string>& items) {
  std::string out;
  for (size_t i = 0; i < items.size(); i++) {
    out += i ? ", " : "(";
    out += items[i];
  }
  return out.append(items.empty() ? "()" : ")");
}

std::string shape_of(const Tensor& x) {
  std::vector<std::string> sizes;
  for (int64_t d = 0; d < x.dim(); d++) sizes.push_back(std::to_string(x.size(d)));
  return list(sizes);
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
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(x.get(), &dtype));
  return static_cast<ScalarType>(dtype);
}

std::pair<int32_t, int32_t> device_of(const Tensor& x) {
  int32_t type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &type));
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

void check_rank(const char* op, const Named& x, std::initializer_list<Rank> ranks) {
  std::vector<std::string> words;
  for (const Rank& rank : ranks) {
    if (x.tensor.dim() == rank.dimensions) return;
    words.emplace_back(rank.words);
  }
  fail(op, std::string(x.name) + " has shape " + shape_of(x.tensor) + "; expected " + one_of(words));
}

constexpr Rank kHidden[] = {{3, "(B, S, C)"}};

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

void check_fits(const char* op, const Named& x, const Named& base, const std::vector<Size>& expected) {
  bool fits = x.tensor.dim() == static_cast<int64_t>(expected.size());
  std::vector<std::string> words;
  for (size_t d = 0; d < expected.size(); d++) {
    fits = fits && expected[d].accepts(x.tensor.size(static_cast<int64_t>(d)));
    words.push_back(expected[d].words());
  }
  if (fits) return;
  fail(op, std::string(x.name) + " has shape " + shape_of(x.tensor) + ", which does not fit " + base.name +
               " of shape " + shape_of(base.tensor) + "; expected " + list(words));
}

void check_budget(const char* op, int64_t k, int64_t m, int64_t tokens, bool has_cls) {
  const int64_t least = has_cls ? 1 : 0;
  // k <= tokens before the sum, which could overflow.
  if (k >= least && m >= 0 && k <= tokens && m <= tokens && k + m >= 1 && k + m <= tokens) return;
  fail(op, "k = " + std::to_string(k) + " and m = " + std::to_string(m) + " do not fit S = " + std::to_string(tokens) +
               " tokens; expected k >= " + std::to_string(least) +
               ", m >= 0 and 1 <= k + m <= " + std::to_string(tokens) + (has_cls ? " (CLS is one of the k)" : ""));
}

void check_keys(const char* op, const Named& keys, const Named& base, int64_t B, int64_t S) {
  if (keys.tensor.dim() == 3) {
    check_fits(op, keys, base, {B, S, "D"});
  } else {
    check_fits(op, keys, base, {B, "H", S, "D"});
  }
}

void check_attn(const char* op, const Named& attn, const Named& base, int64_t B, int64_t S) {
  switch (attn.tensor.dim()) {
    case 2:
      return check_fits(op, attn, base, {B, S});
    case 3:
      return check_fits(op, attn, base, {B, "H", S});
    default:
      return check_fits(op, attn, base, {B, "H", S, S});
  }
}

void check_keys_rank(const char* op, const Named& keys) {
  check_rank(op, keys, {{3, "(B, S, D)"}, {4, "(B, H, S, D)"}});
}

void check_attn_rank(const char* op, const Named& attn) {
  check_rank(op, attn, {{2, "(B, S)"}, {3, "(B, H, S)"}, {4, "(B, H, S, S)"}});
}

void check_qk_ranks(const char* op, const Named& queries, const Named& keys, const std::optional<Tensor>& lse) {
  check_rank(op, queries, {{4, "(B, H, S, D)"}});
  check_rank(op, keys, {{4, "(B, H, S, D)"}});
  if (lse) check_rank(op, {"lse", *lse}, {{3, "(B, H, S)"}});
}

void check_qk_sizes(const char* op, const Named& queries, const Named& keys, const std::optional<Tensor>& lse,
                    const Named& base, int64_t B, int64_t S) {
  check_fits(op, queries, base, {B, "H", S, "D"});
  const Tensor& q = queries.tensor;
  check_fits(op, keys, queries, {q.size(0), q.size(1), q.size(2), q.size(3)});
  if (lse) check_fits(op, {"lse", *lse}, queries, {q.size(0), q.size(1), q.size(2)});
}

void check_lse(const char* op, const Named& first, const std::optional<Tensor>& lse) {
  if (lse) check_same_device(op, first, {{"lse", *lse}});
}

void check_carried(const char* op, const Named& x, const Named& assignment) {
  if (x.tensor.dim() < 2) {
    fail(op, std::string(x.name) + " has shape " + shape_of(x.tensor) + "; expected (B, S, *)");
  }
  check_rank(op, assignment, {{2, "(B, S)"}});
  check_floating(op, {x});
  check_dtype(op, assignment, {ScalarType::Long});
  check_same_device(op, x, {assignment});
}

}  // namespace

DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      return DType::kBFloat16;
  }
}

MergeMode parse_merge(const char* op, const std::string& word) {
  if (word == "residual") return MergeMode::kResidual;
  if (word == "mean") return MergeMode::kMean;
  fail(op, "merge is \"" + word + "\"; expected \"residual\" or \"mean\"");
}

void check_zip(const Tensor& hidden, const Tensor& keys, const Tensor& attn, int64_t k, int64_t m, bool has_cls) {
  const char* op = "zip";
  const Named h{"hidden", hidden}, key{"keys", keys}, a{"attn", attn};
  check_rank(op, h, {kHidden[0]});
  check_keys_rank(op, key);
  check_attn_rank(op, a);
  check_floating(op, {h, key, a});
  check_same_device(op, h, {key, a});
  check_keys(op, key, h, hidden.size(0), hidden.size(1));
  check_attn(op, a, h, hidden.size(0), hidden.size(1));
  check_budget(op, k, m, hidden.size(1), has_cls);
}

void check_select(const Tensor& keys, const Tensor& attn, int64_t k, int64_t m, bool has_cls) {
  const char* op = "select";
  const Named key{"keys", keys}, a{"attn", attn};
  check_keys_rank(op, key);
  check_attn_rank(op, a);
  check_floating(op, {key, a});
  check_same_device(op, key, {a});
  const int64_t B = keys.size(0), S = keys.size(keys.dim() - 2);
  check_keys(op, key, key, B, S);
  check_attn(op, a, key, B, S);
  check_budget(op, k, m, S, has_cls);
}

void check_zip_qk(const Tensor& hidden, const Tensor& queries, const Tensor& keys, int64_t k, int64_t m, bool has_cls,
                  const std::optional<Tensor>& lse) {
  const char* op = "zip_qk";
  const Named h{"hidden", hidden}, q{"queries", queries}, key{"keys", keys};
  check_rank(op, h, {kHidden[0]});
  check_qk_ranks(op, q, key, lse);
  check_floating(op, {h, q, key});
  if (lse) check_dtype(op, {"lse", *lse}, {ScalarType::Float});
  check_same_device(op, h, {q, key});
  check_lse(op, h, lse);
  check_qk_sizes(op, q, key, lse, h, hidden.size(0), hidden.size(1));
  check_budget(op, k, m, hidden.size(1), has_cls);
}

void check_select_qk(const Tensor& queries, const Tensor& keys, int64_t k, int64_t m, bool has_cls,
                     const std::optional<Tensor>& lse) {
  const char* op = "select_qk";
  const Named q{"queries", queries}, key{"keys", keys};
  check_qk_ranks(op, q, key, lse);
  check_floating(op, {q, key});
  if (lse) check_dtype(op, {"lse", *lse}, {ScalarType::Float});
  check_same_device(op, q, {key});
  check_lse(op, q, lse);
  check_qk_sizes(op, q, key, lse, q, queries.size(0), queries.size(2));
  check_budget(op, k, m, queries.size(2), has_cls);
}

void check_merge(const Tensor& x, const Tensor& assignment, int64_t k, int64_t m) {
  const char* op = "merge";
  const Named carried{"x", x}, a{"assignment", assignment};
  check_carried(op, carried, a);
  check_fits(op, a, carried, {x.size(0), x.size(1)});
  check_budget(op, k, m, assignment.size(1), false);
}

void check_merge_backward(const Tensor& grad, const Tensor& assignment, int64_t k, int64_t m) {
  const char* op = "merge_backward";
  const Named carried{"grad", grad}, a{"assignment", assignment};
  check_carried(op, carried, a);
  check_budget(op, k, m, assignment.size(1), false);
  std::vector<Size> expected{assignment.size(0), k + m};
  for (int64_t d = 2; d < grad.dim(); d++) expected.emplace_back(grad.size(d));
  check_fits(op, carried, a, expected);
}

}  // namespace visionzip
