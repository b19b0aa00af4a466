// Runs this project's kernels, executed on the host, against plain C++.  Without Python and torch, so that sanitizers
// and the race checker see nothing else.
//
//   kernel_driver [long_]column_sums|merge|packed|plan|zip    exits with 0 if all is right
#include <cstdio>
#include <exception>
#include <map>
#include <string>

#include "driver.h"

using namespace visionzip::kernel_tests;

int main(int argc, char** argv) {
  const std::string what = argc == 2 ? argv[1] : "";
  try {
    const std::map<std::string, int (*)()> cases{{"column_sums", run_column_sums_cases},
                                                 {"long_column_sums", run_long_column_sums_cases},
                                                 {"merge", run_merge_cases},
                                                 {"packed", run_packed_cases},
                                                 {"plan", run_plan_cases},
                                                 {"zip", run_zip_cases}};
    if (const auto found = cases.find(what); found != cases.end()) {
      std::printf("%d launches\n", found->second());
      return 0;
    }
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  std::fprintf(stderr, "usage: kernel_driver [long_]column_sums|merge|packed|plan|zip\n");
  return 2;
}
