// Kernels that use what CUDA offers as it should be used, compared with what CUDA says the results are.
#pragma once

#include <string>

namespace cuda_emulation::tests {

bool is_check(const std::string& name);

// Empty if all is right; otherwise what is not.
std::string run_check(const std::string& name);

}  // namespace cuda_emulation::tests
