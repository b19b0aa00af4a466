// Kernels with a planted fault each, and their fault-free twins.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

namespace cuda_emulation::tests {

struct FaultParams {
  const float* in;  // n numbers, in[i] = i
  float* out;       // n numbers
  unsigned* counter;
  int n;
  bool broken;
};

constexpr int kFaultThreads = 64;
constexpr int kFaultBlocks = 2;  // so in and out hold 128 numbers

// How one ends.
struct Outcome {
  cudaError_t error = cudaSuccess;
  bool right = true;  // whether out holds what it should
};

bool is_fault(const std::string& name);
Outcome run_fault(const std::string& name, bool broken);

}  // namespace cuda_emulation::tests
