// Places in the code, in words.
#pragma once

#include <string>

namespace cuda_emulation {

// "file:line" of the instruction before `code`, and where it was inlined, where it was called.
std::string symbolize(const void* code);

}  // namespace cuda_emulation
