#include "symbolize.h"

#include <dlfcn.h>

#include <cstdio>
#include <string>

namespace cuda_emulation {

std::string symbolize(const void* code) {
  Dl_info info{};
  if (dladdr(code, &info) == 0) return "an unknown place";
  // A return address: the call lies before it.
  const auto offset =
      static_cast<unsigned long>(static_cast<const char*>(code) - static_cast<const char*>(info.dli_fbase)) - 1;
  // addr2line prints a line for the innermost function, and one for each that it was inlined into.
  char command[4096];
  std::snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%lx 2>/dev/null", info.dli_fname, offset);
  std::string answer;
  if (FILE* pipe = popen(command, "r"); pipe != nullptr) {
    char line[1024];
    for (int i = 0; i < 3 && std::fgets(line, sizeof line, pipe) != nullptr; i++) {
      std::string place(line);
      place.erase(place.find_first_of(" \n"));  // and a remark in parentheses
      answer += (i == 0 ? "" : ", called at ") + place;
    }
    pclose(pipe);
  }
  std::snprintf(command, sizeof command, "%s+0x%lx", info.dli_fname, offset);
  return answer.empty() || answer[0] == '?' ? command : answer;
}

}  // namespace cuda_emulation
