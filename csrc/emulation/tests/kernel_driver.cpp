// Runs this project's kernels, executed on the host, against plain C++.  Without Python and torch, so that sanitizers
// and the race checker see nothing else.
//
//   kernel_driver merge|zip    exits with 0 if all is right
#include <cstdio>
#include <exception>
#include <string>

#include "driver.h"

using namespace visionzip::emulation::tests;

int main(int argc, char** argv) {
  const std::string what = argc == 2 ? argv[1] : "";
  try {
    if (what == "merge" || what == "zip") {
      std::printf("%d launches\n", what == "merge" ? run_merge_cases() : run_zip_cases());
      return 0;
    }
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  std::fprintf(stderr, "usage: kernel_driver merge|zip\n");
  return 2;
}
