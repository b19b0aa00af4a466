// _C.plan(), _C.divide_packed() and _C.plan_cuda(): what the operators would do with a problem, without doing it.
#include "cpu/plan/plan.h"

#include <pybind11/stl.h>

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "checks/checks.h"
#include "cuda/plan/forced_launch.h"
#include "cuda/plan/thresholds.h"
#include "cuda/plan/zip_plan.h"

namespace visionzip {
namespace {

namespace py = pybind11;
using cpu::Operation, cpu::Problem;

Operation parse_operation(const std::string& name) {
  if (name == "zip" || name == "zip_qk") return Operation::kZip;
  if (name == "select" || name == "select_qk") return Operation::kSelect;
  if (name == "merge") return Operation::kMerge;
  throw std::invalid_argument("op is \"" + name + "\"; expected zip, zip_qk, select, select_qk or merge");
}

void require(bool fits, const char* name, int64_t value, const char* expected) {
  if (!fits) throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + "; expected " + expected);
}

void check_problem(const Problem& p) {
  constexpr int64_t kMost = 0x7fffffff;
  require(p.B >= 0 && p.B <= kMost, "B", p.B, "0 to 2147483647");
  require(p.S >= 1 && p.S <= kMost, "S", p.S, "1 to 2147483647");
  require(p.C >= 0 && p.C <= kMost, "C", p.C, "0 to 2147483647");
  require(p.H >= 1 && p.H <= kMost, "H", p.H, "1 to 2147483647");
  require(p.D >= 0 && p.D <= kMost, "D", p.D, "0 to 2147483647");
  require(p.k >= 0 && p.k <= p.S, "k", p.k, "0 to S");
  require(p.m >= 0 && p.m <= p.S - p.k, "m", p.m, "0 to S - k");
}

Problem describe(const std::string& op, int64_t B, int64_t S, int64_t C, int64_t H, int64_t D, int64_t k, int64_t m,
                 const SelectionRule& rule) {
  const bool from_queries = op == "zip_qk" || op == "select_qk";
  const ScoreSource source = from_queries ? ScoreSource::kQueryKey : ScoreSource::kMatrix;
  const Problem problem{.operation = parse_operation(op),
                        .source = source,
                        .has_cls = rule.has_cls,
                        .B = B,
                        .S = S,
                        .C = C,
                        .H = H,
                        .D = D,
                        .k = k,
                        .m = m,
                        .policy = rule.policy,
                        .keep_cls = rule.keep_cls};
  check_problem(problem);
  return problem;
}

py::dict plan(const std::string& op, int64_t B, int64_t S, int64_t C, int64_t H, int64_t D, int64_t k, int64_t m,
              bool has_cls, int64_t threads, const std::string& policy, bool keep_cls) {
  const SelectionRule rule = parse_rule(op.c_str(), has_cls, policy, keep_cls);
  const Problem problem = describe(op, B, S, C, H, D, k, m, rule);
  require(threads >= 1, "threads", threads, "1 or more");
  const cpu::Plan chosen = cpu::plan_batch(problem, threads);
  py::dict out;
  out["whole_images"] = chosen.whole_images;
  out["shared_images"] = chosen.shared_images;
  out["least_tokens"] = chosen.shared.least_tokens;
  out["whole_channels"] = chosen.whole.whole_channels;
  out["row_shares"] = chosen.shared.row_shares;
  out["shared_channels"] = chosen.shared.shared_channels;
  out["query_chunks"] = chosen.shared.query_chunks;
  out["largest_temporary_bytes"] = chosen.largest_temporary_bytes;
  out["workspace_bytes"] = chosen.workspace_bytes;
  return out;
}

py::tuple divide_packed(const std::vector<double>& work, int64_t threads) {
  require(threads >= 1, "threads", threads, "1 or more");
  const cpu::Division division = cpu::divide_images(work, threads);
  return py::make_tuple(division.whole, division.shared);
}

py::dict describe_column_sums(const cuda::ColumnSumsPlan& plan) {
  py::dict out;
  out["why"] = plan.why;
  out["blocks"] = plan.blocks;
  out["threads"] = plan.threads;
  out["shared_bytes"] = plan.shared_bytes;
  out["sums_bytes"] = plan.sums_bytes;
  out["one_pass_tokens"] = plan.tiling.one_pass_tokens;
  out["block_chunks"] = plan.tiling.block_chunks;
  return out;
}

py::dict describe_plan(const cuda::ZipPlan& plan) {
  py::dict out;
  if (plan.column_sums) out["scoring"] = describe_column_sums(*plan.column_sums);
  out["path"] = cuda::name_of(plan.path);
  out["why"] = plan.why;
  if (plan.path == cuda::Path::kNone) return out;
  out["team_blocks"] = plan.tiling.team_blocks;
  out["blocks"] = plan.blocks;
  out["threads"] = plan.threads;
  out["shared_bytes"] = plan.shared_bytes;
  out["scratch_bytes"] = plan.scratch_bytes;
  out["staged"] = plan.tiling.staged;
  out["tile_vectors"] = plan.tiling.tile_vectors;
  out["rank_counting"] = plan.tiling.rank_counting;
  return out;
}

// Attention is given as a matrix.  packed_tokens, group: as in plan_cuda.
cuda::ZipProblem zip_problem(const Problem& p, int64_t packed_tokens, int32_t group, int32_t element_bytes) {
  const auto H = static_cast<int32_t>(p.H);
  return {.dtype = element_bytes == 4 ? DType::kFloat32 : DType::kBFloat16,
          .source = p.source,
          .has_cls = p.has_cls,
          .has_lse = false,
          .has_hidden = p.operation == Operation::kZip,
          .packed = packed_tokens > 0,
          .mode = MergeMode::kResidual,
          .scale = 1,
          .S = static_cast<int32_t>(p.S),
          .k = static_cast<int32_t>(p.k),
          .m = static_cast<int32_t>(p.m),
          .C = static_cast<int32_t>(p.C),
          .H = H,
          .D = static_cast<int32_t>(p.D),
          .attn_heads = H,
          .group = group,
          .images = p.B,
          .all_tokens = packed_tokens ? packed_tokens : p.B * p.S,
          .policy = p.policy,
          .keep_cls = p.keep_cls};
}

// Contiguous tensors of one dtype, whose rows are multiples of 16 bytes.  packed_tokens: 0, or those of all B images,
// which are packed then; S, k and m are the most that any has.  group: cells to a token of those.
py::dict plan_cuda(const std::string& op, int64_t B, int64_t S, int64_t C, int64_t H, int64_t D, int64_t k, int64_t m,
                   bool has_cls, int64_t packed_tokens, int32_t group, int32_t element_bytes,
                   int32_t compute_capability, int32_t multiprocessors, int32_t shared_bytes,
                   const std::map<int32_t, int32_t>& clusters, const std::string& policy, bool keep_cls) {
  const SelectionRule rule = parse_rule(op.c_str(), has_cls, policy, keep_cls);
  const Problem problem = describe(op, B, S, C, H, D, k, m, rule);
  if (problem.operation == Operation::kMerge) throw std::invalid_argument("op is \"merge\"; it has no plan");
  require(element_bytes == 2 || element_bytes == 4, "element_bytes", element_bytes, "2 or 4");
  require(packed_tokens == 0 || (packed_tokens >= S && packed_tokens <= B * S), "packed_tokens", packed_tokens,
          "0, or S to B * S");
  require(group >= 1 && (group == 1 || packed_tokens > 0), "group", group, "1, or more where images are packed");
  cuda::Gpu gpu{compute_capability, multiprocessors, shared_bytes};
  cuda::assume_clusters(gpu);
  for (const auto& [blocks, count] : clusters) {
    require(blocks >= 1 && blocks <= cuda::kMostClusterBlocks, "clusters", blocks, "keys from 1 to 16");
    gpu.clusters[static_cast<size_t>(blocks)] = count;
  }
  return describe_plan(
      cuda::plan_zip(zip_problem(problem, packed_tokens, group, element_bytes), gpu, cuda::forced_by_environment()));
}

}  // namespace

void bind_plan(py::module_& module) {
  module.def(
      "plan", &plan, py::arg("op"), py::kw_only(), py::arg("B"), py::arg("S"), py::arg("C") = 0, py::arg("H") = 1,
      py::arg("D") = 0, py::arg("k"), py::arg("m"), py::arg("has_cls") = true, py::arg("threads") = 1,
      py::arg("policy") = "attention", py::arg("keep_cls") = true,
      "How the CPU kernels would solve a problem: the images that a thread works on alone (whole_images) and those "
      "that all threads share (shared_images), sizes of the shared parts, and memory besides the outputs in bytes. "
      "VISIONZIP_CPU_PLAN overrides the factors that it goes by, as in the operators.");
  module.def(
      "cpu_factors",
      [] {
        const cpu::Factors by = cpu::factors();
        return std::map<std::string, double>{{"least_tokens", static_cast<double>(by.least_tokens)},
                                             {"head_rounds", static_cast<double>(by.head_rounds)},
                                             {"most_above_mean", by.most_above_mean},
                                             {"assign_work", by.assign_work},
                                             {"column_work", by.column_work}};
      },
      "What the plans of the CPU kernels go by, as VISIONZIP_CPU_PLAN overrides it.");
  module.def("divide_packed", &divide_packed, py::arg("work"), py::kw_only(), py::arg("threads"),
             "How the CPU kernels divide packed images by their work: the images (by number) that each thread works on "
             "alone, and those that all threads share.");
  module.def(
      "plan_cuda", &plan_cuda, py::arg("op"), py::kw_only(), py::arg("B"), py::arg("S"), py::arg("C") = 0,
      py::arg("H") = 1, py::arg("D") = 0, py::arg("k"), py::arg("m"), py::arg("has_cls") = true,
      py::arg("packed_tokens") = 0, py::arg("group") = 1, py::arg("element_bytes") = 2,
      py::arg("compute_capability") = 90, py::arg("multiprocessors") = 132, py::arg("shared_bytes") = 232448,
      py::arg("clusters") = std::map<int32_t, int32_t>{}, py::arg("policy") = "attention", py::arg("keep_cls") = true,
      "How the CUDA kernels would be launched on a GPU (an H200, unless said otherwise): the path, the blocks "
      "that work on one image (team_blocks), shared memory and scratch in bytes; 'why' says it in words. Where all "
      "queries score, 'scoring' says the same of the launch before it, which sums their attention. packed_tokens: the "
      "tokens of all B images, where those are packed; S, k and m are then the most that any image has, and group the "
      "cells, rows of keys, of a token. clusters: how many clusters of so many blocks run at the same time, where that "
      "is less than the multiprocessors would hold; 0: such a launch fails. VISIONZIP_PLAN overrides what would be "
      "chosen, as in the operators.");
  module.def(
      "cuda_thresholds", [](int32_t capability) { return cuda::list_thresholds(cuda::thresholds_of(capability)); },
      py::kw_only(), py::arg("compute_capability"),
      "What the plans of CUDA kernels go by on such a GPU: each threshold's value, and the file in benchmarks/results "
      "that it comes from, or \"modelled\".");
}

}  // namespace visionzip
