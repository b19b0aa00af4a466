// A call's block from standard input, and the block with the results to standard output.
#include <cstdio>
#include <cstdlib>

#include "call.h"

int main(int argc, char** argv) {
  const size_t bytes = argc == 2 ? std::strtoull(argv[1], nullptr, 10) : 0;
  void* block = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (!bytes || std::fread(block, 1, bytes, stdin) != bytes) {
    std::fprintf(stderr, "usage: cpu_driver BYTES < BLOCK > RESULTS\n");
    return 2;
  }
  visionzip_run_call(block);
  return std::fwrite(block, 1, bytes, stdout) == bytes ? 0 : 1;
}
