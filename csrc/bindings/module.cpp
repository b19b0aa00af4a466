// The Python module visionzip_ext._C: what the build, the checks and the plans have to say.  No tensor passes through
// it, and it knows nothing of torch; operators are reached through torch.ops.visionzip.
#include "bindings/bindings.h"

PYBIND11_MODULE(_C, module) {
  module.doc() = "Facts of the build, checks and launch plans of visionzip_ext";
  visionzip::bind_build_info(module);
  visionzip::bind_checks(module);
  visionzip::bind_cpu_isa(module);
  visionzip::bind_plan(module);
}
