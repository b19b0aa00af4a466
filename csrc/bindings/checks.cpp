// _C.check() and _C.check_sequences(): what the operators require of their arguments, asked by whoever has no tensor to
// call them with.
#include "checks/checks.h"

#include <pybind11/stl.h>

#include <deque>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/bindings.h"
#include "checks/packed_checks.h"

namespace visionzip {
namespace {

namespace py = pybind11;

using Numbers = std::vector<int64_t>;

// layout, dtype, device, device index, sizes
using Description = std::tuple<std::string, std::string, std::string, std::optional<int32_t>, Numbers>;

// An operator's arguments by their names in its schema; a tensor is a Description.
class Arguments {
 public:
  explicit Arguments(const py::dict& values) : values_(values) {}

  template <class T>
  T get(const char* name) const {
    return values_[name].cast<T>();
  }

  std::optional<TensorInfo> optional_tensor(const char* name) {
    const auto given = get<std::optional<Description>>(name);
    if (!given) return {};
    const auto& [layout, dtype, device, index, sizes] = described_.emplace_back(*given);
    return TensorInfo(layout, dtype, device, index.value_or(-1), sizes);
  }

  TensorInfo tensor(const char* name) { return optional_tensor(name).value_or(TensorInfo()); }
  int64_t k() const { return get<int64_t>("k"); }
  int64_t m() const { return get<int64_t>("m"); }
  SelectionRule rule(const char* op) const {
    return parse_rule(op, get<bool>("has_cls"), get<std::string>("policy"), get<bool>("keep_cls"));
  }
  void check_merge_word(const char* op) const { parse_merge(op, get<std::string>("merge")); }

  PackedInfo packed(const char* op) {
    const SelectionRule selection = rule(op);
    return {tensor("keys"),
            tensor("cu_seqlens"),
            get<Numbers>("k"),
            get<Numbers>("m"),
            optional_tensor("queries"),
            optional_tensor("scores"),
            get<std::optional<double>>("scale"),
            optional_tensor("lse"),
            get<std::optional<int64_t>>("max_seqlen"),
            get<int64_t>("group"),
            selection};
  }

 private:
  const py::dict& values_;
  std::deque<Description> described_;  // what the TensorInfos point into
};

void zip(Arguments& a) {
  a.check_merge_word("zip");
  const SelectionRule rule = a.rule("zip");
  check_zip(a.tensor("hidden"), a.tensor("keys"), a.tensor("attn"), a.k(), a.m(), rule);
}

void zip_qk(Arguments& a) {
  a.check_merge_word("zip_qk");
  const SelectionRule rule = a.rule("zip_qk");
  check_zip_qk(a.tensor("hidden"), a.tensor("queries"), a.tensor("keys"), a.k(), a.m(), rule, a.optional_tensor("lse"));
}

void select(Arguments& a) {
  const SelectionRule rule = a.rule("select");
  check_select(a.tensor("keys"), a.tensor("attn"), a.k(), a.m(), rule);
}

void select_qk(Arguments& a) {
  const SelectionRule rule = a.rule("select_qk");
  check_select_qk(a.tensor("queries"), a.tensor("keys"), a.k(), a.m(), rule, a.optional_tensor("lse"));
}

void merge(Arguments& a) {
  a.check_merge_word("merge");
  check_merge(a.tensor("x"), a.tensor("assignment"), a.k(), a.m());
}

void merge_backward(Arguments& a) {
  a.check_merge_word("merge_backward");
  check_merge_backward(a.tensor("grad"), a.tensor("assignment"), a.k(), a.m());
}

void zip_packed(Arguments& a) {
  a.check_merge_word("zip_packed");
  PackedInfo info = a.packed("zip_packed");
  check_zip_packed(a.tensor("hidden"), info);
}

void select_packed(Arguments& a) {
  PackedInfo info = a.packed("select_packed");
  check_select_packed(info);
}

void merge_packed(Arguments& a) {
  a.check_merge_word("merge_packed");
  auto k = a.get<Numbers>("k"), m = a.get<Numbers>("m");
  check_merge_packed(a.tensor("x"), a.tensor("assignment"), a.tensor("cu_seqlens"), k, m);
}

void merge_packed_backward(Arguments& a) {
  a.check_merge_word("merge_packed_backward");
  auto k = a.get<Numbers>("k"), m = a.get<Numbers>("m");
  check_merge_packed_backward(a.tensor("grad"), a.tensor("assignment"), a.tensor("cu_seqlens"), k, m);
}

void check(const std::string& op, const py::dict& values) {
  static const std::map<std::string, void (*)(Arguments&)> kChecks{
      {"zip", zip},
      {"zip_qk", zip_qk},
      {"select", select},
      {"select_qk", select_qk},
      {"merge", merge},
      {"merge_backward", merge_backward},
      {"zip_packed", zip_packed},
      {"select_packed", select_packed},
      {"merge_packed", merge_packed},
      {"merge_packed_backward", merge_packed_backward},
  };
  Arguments arguments(values);
  kChecks.at(op)(arguments);
}

// Of arguments that passed `check`.
void check_values(const std::string& op, const std::vector<int32_t>& cu_seqlens, int64_t T, Numbers k, Numbers m,
                  std::optional<int64_t> max_seqlen, bool keep_cls) {
  const size_t n = cu_seqlens.size() - 1;
  for (Numbers* numbers : {&k, &m}) {
    if (numbers->size() != n) numbers->assign(n, numbers->front());
  }
  check_sequences(op.c_str(), cu_seqlens.data(), T, k, m, max_seqlen, keep_cls);
}

}  // namespace

void bind_checks(py::module_& module) {
  module.def(
      "check", &check, py::arg("op"), py::arg("arguments"),
      "Raise the RuntimeError with which operator `op` would refuse these arguments, by their names in its "
      "schema; a tensor as the tuple (layout, dtype, device type, device index or None, sizes), None where there "
      "is none.");
  module.def(
      "check_sequences", &check_values, py::arg("op"), py::arg("cu_seqlens"), py::arg("T"), py::arg("k"), py::arg("m"),
      py::arg("max_seqlen"), py::arg("keep_cls") = true,
      "Likewise for the values of cu_seqlens, which only who reads them can check, of arguments that `check` let "
      "pass.");
}

}  // namespace visionzip
