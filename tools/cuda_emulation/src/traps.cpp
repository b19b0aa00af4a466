#include "traps.h"

#include <ucontext.h>

#include "block.h"
#include "cuda_emulation/current.h"
#include "symbolize.h"

namespace cuda_emulation {

namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr int kSignals[] = {SIGFPE};
#else
constexpr int kSignals[] = {SIGFPE, SIGSEGV, SIGBUS};
#endif

// Runs on the stack of the thread that was interrupted, in the middle of a kernel's own instruction, so that whatever a
// kernel may do may be done here as well; it does not return.
void handle(int signal, siginfo_t*, void* context) {
  if (current.thread == nullptr) {  // not a kernel's
    std::signal(signal, SIG_DFL);
    std::raise(signal);
    return;
  }
  const auto* registers = static_cast<const ucontext_t*>(context)->uc_mcontext.gregs;
  const std::string place = symbolize(reinterpret_cast<const char*>(registers[REG_RIP]) + 1);
  fail(signal == SIGFPE ? "integer division by zero" : "access to an invalid address", place);
}

}  // namespace

Traps::Traps() {
  struct sigaction action{};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;  // it is left by switching to another fiber
  int i = 0;
  for (const int signal : kSignals) sigaction(signal, &action, &before_[i++]);
}

Traps::~Traps() {
  int i = 0;
  for (const int signal : kSignals) sigaction(signal, &before_[i++], nullptr);
}

}  // namespace cuda_emulation
