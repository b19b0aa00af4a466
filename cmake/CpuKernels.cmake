# The CPU kernels, without torch: visionzip_cpu_kernels, an object library of one table of kernels for each of
# VISIONZIP_INSTRUCTION_SETS, and cpu_phase_sources, what computes images with one of them.
#
# The kernels are one source, compiled once for each instruction set; csrc/cpu/kernels/isa.cpp chooses at run time.  So no
# file is ever compiled for the machine that builds, and every result is portable.

set(avx2_flags -mavx2 -mfma -mf16c)
set(avx512_flags ${avx2_flags} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512)
set(avx512bf16_flags ${avx512_flags} -mavx512bf16)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(VISIONZIP_INSTRUCTION_SETS baseline avx2 avx512 avx512bf16)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set(VISIONZIP_INSTRUCTION_SETS neon)  # every such CPU has it, so the compiler's default flags do
else()
  set(VISIONZIP_INSTRUCTION_SETS baseline)
endif()

set(cpu_kernel_sources "${visionzip_csrc}/cpu/plan/plan.cpp")
foreach(instruction_set IN LISTS VISIONZIP_INSTRUCTION_SETS)
  set(source "${visionzip_csrc}/cpu/kernels/kernels_${instruction_set}.cpp")
  visionzip_kernel_flags("${source}" ${${instruction_set}_flags})
  list(APPEND cpu_kernel_sources "${source}")
endforeach()
add_library(visionzip_cpu_kernels OBJECT ${cpu_kernel_sources})
visionzip_target_defaults(visionzip_cpu_kernels)

set(cpu_phase_sources
  "${visionzip_csrc}/cpu/kernels/phases.cpp"
  "${visionzip_csrc}/cpu/kernels/row_shares.cpp"
  "${visionzip_csrc}/cpu/kernels/selection.cpp"
  "${visionzip_csrc}/cpu/kernels/weights.cpp")
