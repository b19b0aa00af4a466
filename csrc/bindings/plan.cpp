#include "bindings/bindings.h"

namespace visionzip {

void bind_plan(pybind11::module_&) {}

}  // namespace visionzip
