# What all of our libraries have in common.

# torch's headers ask for C++20.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)

# torch is always imported before our libraries are loaded, so its libraries are found by name: no path to them may
# travel in ours.
set(CMAKE_SKIP_RPATH ON)

# The oldest torch whose stable ABI we call (2.10): one build serves it and every later one.
set(VISIONZIP_TORCH_TARGET 0x020a000000000000)

# GCC 12 warns of overlapping copies in its own std::string, falsely (GCC bug 105651).
set(gcc_12 $<AND:$<CXX_COMPILER_ID:GNU>,$<VERSION_LESS:$<CXX_COMPILER_VERSION>,13>>)

cmake_path(SET visionzip_csrc NORMALIZE "${CMAKE_CURRENT_LIST_DIR}/../csrc")

function(visionzip_target_defaults target)
  set_target_properties(${target} PROPERTIES
    CXX_VISIBILITY_PRESET hidden
    CUDA_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON
    POSITION_INDEPENDENT_CODE ON)
  target_include_directories(${target} PRIVATE "${visionzip_csrc}")
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra>
    # Of local variables only: a constructor's parameters may be named like the members that they set.
    $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wshadow=local>
    $<$<COMPILE_LANG_AND_ID:CXX,Clang>:-Wshadow>
    $<$<AND:$<COMPILE_LANGUAGE:CXX>,${gcc_12}>:-Wno-restrict>
    $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:${VISIONZIP_WERROR}>>:-Werror>
    $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>
    $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${VISIONZIP_WERROR}>>:--Werror=all-warnings>)
endfunction()

# A CPU kernel, for one instruction set.  What these flags permit (fused multiply-adds, no errno, no floating-point traps)
# changes no result from one run to another; -ffast-math, which also permits reordering and denies NaN, would.
# GCC's own AVX-512 intrinsics use deliberately undefined vectors, of which GCC 12 warns where they are inlined.
function(visionzip_kernel_flags source)
  set_source_files_properties("${source}" PROPERTIES COMPILE_OPTIONS
    "$<$<NOT:$<CONFIG:Debug>>:-O3>;-fno-math-errno;-fno-trapping-math;-ffp-contract=fast;$<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>;${ARGN}")
endfunction()

# A library of operators: torch's stable ABI, and not one exported symbol.  torch finds the operators by the registration
# that runs when the library is loaded; the linker script also hides std's templates, which -fvisibility does not reach.
function(visionzip_link_torch target)
  target_include_directories(${target} SYSTEM PRIVATE "${TORCH_DIR}/include")
  target_compile_definitions(${target} PRIVATE TORCH_TARGET_VERSION=${VISIONZIP_TORCH_TARGET})
  # torch's libraries carry copies of a few functions of the C++ library: ours shall come from the C++ library itself.
  target_link_libraries(${target} PRIVATE stdc++)
  # libtorch.so itself exports nothing that we call.  It is named for what it depends on: torch's CPU library and, in a
  # torch with CUDA, the CUDA library, which the torch that we build against may not have.
  target_link_libraries(${target} PRIVATE
    -Wl,--no-as-needed "${TORCH_DIR}/lib/libtorch.so" -Wl,--as-needed "${TORCH_DIR}/lib/libtorch_cpu.so")
  set(hide_all "${PROJECT_SOURCE_DIR}/cmake/hide_all.map")
  target_link_options(${target} PRIVATE "LINKER:--version-script=${hide_all}")
  set_property(TARGET ${target} APPEND PROPERTY LINK_DEPENDS "${hide_all}")
endfunction()

# CUDA sources, compiled for VISIONZIP_CUDA_ARCHITECTURES, and the CUDA runtime inside the library, so that it does not
# matter which one torch brings.
function(visionzip_link_cuda target)
  cmake_host_system_information(RESULT cores QUERY NUMBER_OF_LOGICAL_CORES)
  set_target_properties(${target} PROPERTIES
    CUDA_ARCHITECTURES "${VISIONZIP_CUDA_ARCHITECTURES}"
    CUDA_RUNTIME_LIBRARY None
    LINKER_LANGUAGE CXX)
  # torch's headers declare their CUDA part only for who asks.
  target_compile_definitions(${target} PRIVATE USE_CUDA)
  target_include_directories(${target} SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--threads=${cores}>)
  target_link_libraries(${target} PRIVATE "${VISIONZIP_CUDART}" ${CMAKE_DL_LIBS} rt pthread)
endfunction()
