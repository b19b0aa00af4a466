// The emulation's own tests, one a run.
//
//   self_test NAME          a check: exits with 0 if all is right
//   self_test NAME fine     a kernel without its fault: exits with 0 if nothing is diagnosed and the result is right
//   self_test NAME broken   with its fault: exits with 1 after a diagnosis, with 2 if there is none but a wrong result
//
// It exits with 3 where it cannot run what is asked for.
#include <cstdio>
#include <exception>
#include <string>

#include "checks.h"
#include "faults.h"

using namespace cuda_emulation::tests;

namespace {

int finish_fault(const std::string& name, bool broken) {
  const Outcome outcome = run_fault(name, broken);
  if (outcome.error != cudaSuccess) {
    std::printf("%s\n", cudaGetErrorString(outcome.error));
    return 1;
  }
  if (!outcome.right) std::printf("wrong result\n");
  return outcome.right ? 0 : 2;
}

int finish_check(const std::string& name) {
  const std::string wrong = run_check(name);
  if (!wrong.empty()) std::printf("wrong: %s\n", wrong.c_str());
  return wrong.empty() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "", how = argc > 2 ? argv[2] : "";
  try {
    if (argc == 2 && is_check(name)) return finish_check(name);
    if (argc == 3 && is_fault(name) && (how == "fine" || how == "broken")) return finish_fault(name, how == "broken");
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 3;
  }
  std::fprintf(stderr, "usage: self_test CHECK | self_test FAULT fine|broken\n");
  return 3;
}
