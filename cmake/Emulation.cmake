# The CUDA sources compiled to be executed on the host, for tests (docs/kernel_testing.md).  Nothing here is built unless
# it is asked for by name, and nothing is installed.
#
#   visionzip_emulated            libvisionzip_emulated.so: torch.ops.visionzip_emulated.*

set(emulation_dir "${PROJECT_SOURCE_DIR}/csrc/emulation")
set(emulation_runtime
  async_copies.cpp
  block.cpp
  device.cpp
  fiber.cpp
  group.cpp
  intrinsics.cpp
  launch.cpp
  runtime_api.cpp
  settings.cpp
  shared_memory.cpp)
list(TRANSFORM emulation_runtime PREPEND "${emulation_dir}/")
# CMake knows .cu files as CUDA's.  For the C++ compiler, a source that does nothing but include the one given.
function(visionzip_as_cpp result)
  set(wrappers)
  foreach(source IN LISTS ARGN)
    if(source MATCHES "\\.cu$")
      cmake_path(ABSOLUTE_PATH source BASE_DIRECTORY "${PROJECT_SOURCE_DIR}")
      cmake_path(GET source FILENAME name)
      set(wrapper "${PROJECT_BINARY_DIR}/generated/emulation/${name}.cpp")
      file(CONFIGURE OUTPUT "${wrapper}" CONTENT "#include \"${source}\"\n" @ONLY)
      list(APPEND wrappers "${wrapper}")
    else()
      list(APPEND wrappers "${source}")
    endif()
  endforeach()
  set(${result} "${wrappers}" PARENT_SCOPE)
endfunction()

# What compiles CUDA sources as C++.
function(visionzip_emulation_options target)
  visionzip_target_defaults(${target})
  target_include_directories(${target} BEFORE PRIVATE "${emulation_dir}/include")
  target_include_directories(${target} SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  target_compile_definitions(${target} PRIVATE VISIONZIP_EMULATION)
  # As nvcc does it.
  target_compile_options(${target} PRIVATE "SHELL:-include cuda_runtime.h")
  # One rounding for each operation that the source names; pragmas are nvcc's; the site of a call is a default argument.
  target_compile_options(${target} PRIVATE -g -ffp-contract=off -Wno-unknown-pragmas)
  set_target_properties(${target} PROPERTIES EXCLUDE_FROM_ALL ON)
endfunction()

set(emulation_plain -O2)
add_library(emulation_runtime_plain OBJECT ${emulation_runtime})
visionzip_emulation_options(emulation_runtime_plain)
target_compile_options(emulation_runtime_plain PRIVATE ${emulation_plain})

get_target_property(cuda_sources visionzip_cuda SOURCES)
visionzip_as_cpp(emulated_sources ${cuda_sources})
add_library(visionzip_emulated MODULE ${emulated_sources} csrc/registration.cpp)
visionzip_emulation_options(visionzip_emulated)
visionzip_link_torch(visionzip_emulated)
target_compile_options(visionzip_emulated PRIVATE ${emulation_plain})
target_link_libraries(visionzip_emulated PRIVATE emulation_runtime_plain pthread ${CMAKE_DL_LIBS})
target_link_options(visionzip_emulated PRIVATE LINKER:-z,defs)
