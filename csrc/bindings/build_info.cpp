// _C.build_info(): what was built, from what, with what.  Apart from the rest because it is compiled again for every
// new revision.
#include <build_info.h>
#include <git_revision.h>

#include <sstream>
#include <string>

#include "bindings/bindings.h"

namespace visionzip {
namespace {

namespace py = pybind11;

py::list split(const std::string& joined) {
  py::list parts;
  std::istringstream stream(joined);
  for (std::string part; std::getline(stream, part, ',');) {
    parts.append(part);
  }
  return parts;
}

// 0x020a000000000000 -> "2.10": torch keeps major and minor in the two highest bytes.
std::string torch_target() {
  return std::to_string(VISIONZIP_TORCH_TARGET >> 56) + "." + std::to_string(VISIONZIP_TORCH_TARGET >> 48 & 0xff);
}

py::dict build_info() {
  py::dict info;
  info["version"] = VISIONZIP_VERSION;
  info["git_revision"] = VISIONZIP_GIT_REVISION;
  info["compiler"] = VISIONZIP_COMPILER;
  info["build_type"] = VISIONZIP_BUILD_TYPE;
  info["torch_version"] = VISIONZIP_TORCH_VERSION;
  info["torch_target"] = torch_target();
  info["instruction_sets"] = split(VISIONZIP_INSTRUCTION_SETS);
  info["cuda"] = static_cast<bool>(VISIONZIP_CUDA_FOUND);
  info["cuda_missing_reason"] = VISIONZIP_CUDA_MISSING_REASON;
  info["cuda_version"] = VISIONZIP_CUDA_VERSION;
  info["cuda_architectures"] = split(VISIONZIP_CUDA_ARCHITECTURES);
  return info;
}

}  // namespace

void bind_build_info(py::module_& module) {
  module.def("build_info", &build_info,
             "What was built, from what, with what.  'cuda' says whether the CUDA library was built; if not, "
             "'cuda_missing_reason' says why.");
}

}  // namespace visionzip
