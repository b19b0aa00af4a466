// Calls the kernels of one instruction set as the operators do, without torch: by one thread, image by image.
#include "call.h"

#include <string_view>
#include <utility>

#include "cpu/kernels/phases.h"
#include "cpu/kernels/weights.h"
#include "heap.h"

namespace visionzip::cpu {

#ifdef __aarch64__
namespace neon {
extern const Kernels table;
}
#else
namespace baseline {
extern const Kernels table;
}
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
namespace avx512bf16 {
extern const Kernels table;
}
#endif

namespace {

#ifdef __aarch64__
constexpr const Kernels* kTables[] = {&neon::table};
#else
constexpr const Kernels* kTables[] = {&baseline::table, &avx2::table, &avx512::table, &avx512bf16::table};
#endif

const Kernels* chosen;

}  // namespace

// In the place of csrc/cpu/kernels/isa.cpp: what the call names, whatever this CPU has.
const Kernels& kernels() { return *chosen; }

}  // namespace visionzip::cpu

namespace visionzip::instruction_set_tests {

namespace {

using namespace visionzip::cpu;

class Block {
 public:
  explicit Block(void* block) : bytes_(static_cast<char*>(block)) {}
  const Call& call() const { return *reinterpret_cast<const Call*>(bytes_); }

  // A tensor's part that is image b's, of so many elements; null where there is no tensor.
  template <class T>
  T* part(int64_t offset, int64_t b, int64_t elements) const {
    return offset ? reinterpret_cast<T*>(bytes_ + offset) + b * elements : nullptr;
  }
  void* part(int64_t offset, int64_t b, int64_t elements, DType dtype) const {
    return part<char>(offset, b, elements * static_cast<int64_t>(size_of(dtype)));
  }

 private:
  char* bytes_;
};

CallInputs inputs_of(const Call& c) {
  CallInputs in{};
  in.problem = {.operation = c.op == Op::kZip      ? Operation::kZip
                             : c.op == Op::kSelect ? Operation::kSelect
                                                   : Operation::kMerge,
                .source = static_cast<ScoreSource>(c.source),
                .has_cls = c.has_cls != 0,
                .B = c.B,
                .S = c.S,
                .C = c.C,
                .H = c.H,
                .D = c.D,
                .k = c.k,
                .m = c.m,
                .policy = static_cast<SelectionPolicy>(c.policy),
                .keep_cls = c.keep_cls != 0};
  in.keys = {nullptr, static_cast<DType>(c.key_dtype), c.S * c.D, c.D, c.H, c.D};
  const bool matrix = in.problem.source == ScoreSource::kMatrix, scores = in.problem.source == ScoreSource::kScores;
  in.attn.dtype = static_cast<DType>(c.attention_dtype);
  in.attn.head_stride = matrix ? c.S * c.S : c.S;
  in.attn.row_stride = c.S;
  in.attn.heads = scores ? 1 : c.H;
  in.attn.rows = matrix && !c.has_cls ? c.S : 1;
  in.query_head_stride = c.S * c.D;
  in.query_token_stride = c.D;
  in.scale = static_cast<float>(c.scale);
  in.lse_head_stride = c.S;
  in.dtype = static_cast<DType>(c.dtype);
  in.token_stride = c.C;
  in.mode = static_cast<MergeMode>(c.mode);
  return in;
}

ImageInputs image_of(const Block& block, const CallInputs& in, int64_t b) {
  const Call& c = block.call();
  const int64_t per_head = in.problem.source == ScoreSource::kMatrix ? c.S * c.S : c.S;
  ImageInputs image{};
  image.S = c.S;
  image.k = c.k;
  image.m = c.m;
  image.keys = block.part(c.keys, b, c.H * c.S * c.D, in.keys.dtype);
  image.queries = block.part(c.queries, b, c.H * c.S * c.D, in.keys.dtype);
  image.lse = block.part<float>(c.lse, b, c.H * c.S);
  image.attn = block.part(c.attention, b, in.attn.heads * per_head, in.attn.dtype);
  image.indices = block.part<int64_t>(c.indices, b, c.k);
  image.assignment = block.part<int64_t>(c.assignment, b, c.S);
  image.assigned = image.assignment;
  image.x = block.part(c.x, b, c.S * c.C, in.dtype);
  image.out = block.part(c.out, b, (c.k + c.m) * c.C, in.dtype);
  image.place = {"merge", b};
  return image;
}

template <class Phase, class Before>
auto run(Before before) {
  Phase phase(std::move(before));
  if (const int64_t units = phase.units()) phase.run(0, units);
  return std::move(phase).result();
}

void run_image(const CallInputs& in, const ImageInputs& image) {
  Workspace workspace;
  const Image all(in, image, workspace, 0, 1);
  if (!decides(in.problem.operation)) return run<Merge>(run<ReadDecision>(all));
  auto decision = run<Assign>(run<Select>(run<SumColumns>(run<ReadKeys>(all))));
  if (merges(in.problem.operation)) run<Merge>(std::move(decision));
}

void run_backward(const Block& block, const CallInputs& in, int64_t b) {
  const Call& c = block.call();
  const auto* assignment = block.part<const int64_t>(c.assignment, b, c.S);
  const Selection selection = read_decision({"merge_backward", b}, assignment, c.S, c.k, c.m);
  Buffer weights;
  token_weights(assignment, selection, c.k, in.mode, weights.floats(c.S));
  const MergeBackwardTask task{block.part(c.x, b, (c.k + c.m) * c.C, in.dtype),
                               block.part(c.out, b, c.S * c.C, in.dtype),
                               in.dtype,
                               c.C,
                               c.C,
                               assignment,
                               weights.get()};
  kernels().merge_backward(task, 0, c.S);
}

}  // namespace

}  // namespace visionzip::instruction_set_tests

void visionzip_run_call(void* memory) {
  using namespace visionzip::instruction_set_tests;
  const Block block(memory);
  const Call& call = block.call();
  visionzip::cpu::chosen = nullptr;
  for (const visionzip::cpu::Kernels* table : visionzip::cpu::kTables) {
    if (std::string_view(table->name) == call.instruction_set) visionzip::cpu::chosen = table;
  }
  const visionzip::cpu::CallInputs inputs = inputs_of(call);
  for (int64_t b = 0; b < call.B; b++) {
    empty_heap();
    if (call.op == Op::kMergeBackward) {
      run_backward(block, inputs, b);
    } else {
      run_image(inputs, image_of(block, inputs, b));
    }
  }
}
