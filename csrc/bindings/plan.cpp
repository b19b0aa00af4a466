// _C.plan(): what the operators would do with a problem, without doing it.
#include "visionzip/plan.h"

#include <stdexcept>
#include <string>

#include "bindings/bindings.h"

namespace visionzip {
namespace {

namespace py = pybind11;

Operation parse_operation(const std::string& name) {
  if (name == "zip" || name == "zip_qk") return Operation::kZip;
  if (name == "select" || name == "select_qk") return Operation::kSelect;
  if (name == "merge") return Operation::kMerge;
  throw std::invalid_argument("op is \"" + name + "\"; expected zip, zip_qk, select, select_qk or merge");
}

void require(bool fits, const char* name, int64_t value, const char* expected) {
  if (!fits) throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + "; expected " + expected);
}

py::dict plan(const std::string& op, int64_t B, int64_t S, int64_t C, int64_t H, int64_t D, int64_t k, int64_t m,
              bool has_cls, int64_t threads) {
  Problem problem{};
  problem.operation = parse_operation(op);
  const bool from_queries = op == "zip_qk" || op == "select_qk";
  problem.source = from_queries ? ScoreSource::kQueryKey : ScoreSource::kMatrix;
  problem.has_cls = has_cls;
  problem.B = B;
  problem.S = S;
  problem.C = C;
  problem.H = H;
  problem.D = D;
  problem.k = k;
  problem.m = m;
  require(B >= 0, "B", B, "0 or more");
  require(S >= 1, "S", S, "1 or more");
  require(k >= 0 && k <= S, "k", k, "0 to S");
  require(m >= 0 && m <= S - k, "m", m, "0 to S - k");
  require(threads >= 1, "threads", threads, "1 or more");
  const CpuPlan cpu = plan_cpu(problem, threads);
  py::dict out;
  out["whole_images"] = cpu.whole_images;
  out["shared_images"] = cpu.shared_images;
  out["key_tokens"] = cpu.key_tokens;
  out["whole_channels"] = cpu.whole_channels;
  out["shared_channels"] = cpu.shared_channels;
  out["query_chunks"] = cpu.query_chunks;
  out["largest_temporary_bytes"] = cpu.largest_temporary_bytes;
  out["workspace_bytes"] = cpu.workspace_bytes;
  return out;
}

}  // namespace

void bind_plan(py::module_& module) {
  module.def(
      "plan", &plan, py::arg("op"), py::kw_only(), py::arg("B"), py::arg("S"), py::arg("C") = 0, py::arg("H") = 1,
      py::arg("D") = 0, py::arg("k"), py::arg("m"), py::arg("has_cls") = true, py::arg("threads") = 1,
      "How the CPU kernels would carry a problem out: the images that a thread works on alone (whole_images) and those "
      "that all threads share (shared_images), sizes of the shared parts, and memory besides the outputs in bytes.");
}

}  // namespace visionzip
