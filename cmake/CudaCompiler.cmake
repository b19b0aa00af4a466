# Finds nvcc and decides whether the CUDA library is built.  Sets
#
#   VISIONZIP_CUDA_FOUND            whether it is
#   VISIONZIP_CUDA_MISSING_REASON   why not, in words for a user; empty if it is
#   VISIONZIP_CUDA_ARCHITECTURES    what it is compiled for
#   VISIONZIP_CUDA_VERSION          nvcc's version
#   VISIONZIP_CUDART                the static CUDA runtime
#
# nvcc is looked for in CUDACXX, CUDA_HOME, CUDA_PATH, PATH, and last among the installed Python packages (cuda-toolkit),
# so that no system-wide CUDA is needed.

set(VISIONZIP_CUDA_FOUND OFF)
set(VISIONZIP_CUDA_MISSING_REASON "")
set(VISIONZIP_CUDA_ARCHITECTURES "")
set(VISIONZIP_CUDA_VERSION "")

# What wheels are built for: Turing to Blackwell.  Ada (8.9) runs 8.6's code.
set(default_architectures 75 80 86 90 100 120)

# Leaves nvcc's path in CUDACXX, where CMake takes it from.
macro(visionzip_find_nvcc)
  if(NOT DEFINED ENV{CUDACXX})
    visionzip_ask_python(site_packages "import sysconfig; print(sysconfig.get_path('purelib'))" "site-packages")
    find_program(nvcc nvcc NO_CACHE NO_DEFAULT_PATH PATHS ENV CUDA_HOME ENV CUDA_PATH PATH_SUFFIXES bin)
    find_program(nvcc nvcc NO_CACHE NO_DEFAULT_PATH PATHS ENV PATH)
    find_program(nvcc nvcc NO_CACHE NO_DEFAULT_PATH PATHS "${site_packages}/nvidia/cu13/bin" /usr/local/cuda/bin)
    if(nvcc)
      set(ENV{CUDACXX} "${nvcc}")
    endif()
  endif()
  # The Python packages keep their libraries in lib, where nvcc, which looks in lib64, does not find them.  Only CMake's
  # test of the compiler links with nvcc; our library is linked by the C++ compiler, and names its libraries in full.
  cmake_path(SET nvcc_library_dir NORMALIZE "$ENV{CUDACXX}/../../lib")
  if(EXISTS "${nvcc_library_dir}/libcudart_static.a")
    set(ENV{LIBRARY_PATH} "${nvcc_library_dir}:$ENV{LIBRARY_PATH}")
  endif()
endmacro()

# The first error of nvcc that an empty program brings to light (check_language keeps it to itself).
function(visionzip_nvcc_error result)
  set(program "${PROJECT_BINARY_DIR}/CMakeFiles/empty_program")
  file(WRITE "${program}.cu" "int main() {}\n")
  separate_arguments(flags UNIX_COMMAND "$ENV{CUDAFLAGS}")
  if(DEFINED ENV{CUDAHOSTCXX})
    list(APPEND flags -ccbin "$ENV{CUDAHOSTCXX}")
  endif()
  execute_process(COMMAND "$ENV{CUDACXX}" ${flags} "${program}.cu" -o "${program}"
    RESULT_VARIABLE status OUTPUT_VARIABLE words ERROR_VARIABLE words)
  string(REGEX MATCH "[^\n]*([Ee]rror|[Ff]atal|[Cc]annot)[^\n]*" error "${words}")
  if(NOT error)
    set(error "status ${status}")
  endif()
  set(${result} "${error}" PARENT_SCOPE)
endfunction()

# The architectures asked for, or those of the default list that this nvcc knows, with PTX of the newest for what comes
# after.
function(visionzip_choose_architectures result)
  string(REGEX REPLACE "[ ,;]+" ";" architectures "${VISIONZIP_CUDA_ARCHS}")
  if(architectures)
    foreach(architecture IN LISTS architectures)
      if(NOT architecture MATCHES "^[0-9]+[af]?(-real|-virtual)?$")
        message(FATAL_ERROR
          "VISIONZIP_CUDA_ARCHS: '${architecture}' is not an architecture.  Expected a list such as '80-real 90': "
          "a number (90: machine code and PTX), or one with -real (machine code only) or -virtual (PTX only).")
      endif()
    endforeach()
  else()
    execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --list-gpu-arch OUTPUT_VARIABLE known)
    set(architectures ${default_architectures})
    foreach(architecture IN LISTS default_architectures)
      if(NOT known MATCHES "compute_${architecture}\n")
        message(WARNING "This nvcc cannot compile for ${architecture}; the CUDA library is built without it")
        list(REMOVE_ITEM architectures "${architecture}")
      endif()
    endforeach()
    list(POP_BACK architectures newest)
    list(TRANSFORM architectures APPEND "-real")
    list(APPEND architectures "${newest}")
  endif()
  set(${result} "${architectures}" PARENT_SCOPE)
endfunction()

if(NOT VISIONZIP_WITH_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "VISIONZIP_WITH_CUDA is '${VISIONZIP_WITH_CUDA}'; expected AUTO, ON or OFF")
endif()

if(VISIONZIP_WITH_CUDA STREQUAL OFF)
  set(VISIONZIP_CUDA_MISSING_REASON "it was built with VISIONZIP_WITH_CUDA=OFF")
else()
  # The architectures are a property of the target; this keeps CMake from asking the machine's GPU for its own.
  set(CMAKE_CUDA_ARCHITECTURES OFF)
  visionzip_find_nvcc()
  if(DEFINED ENV{CUDACXX})
    if(NOT CMAKE_CUDA_COMPILER)
      # An earlier "not found" is no reason not to look again.
      unset(CMAKE_CUDA_COMPILER CACHE)
    endif()
    include(CheckLanguage)
    check_language(CUDA)
    if(NOT CMAKE_CUDA_COMPILER)
      visionzip_nvcc_error(error)
      string(CONCAT VISIONZIP_CUDA_MISSING_REASON
        "$ENV{CUDACXX}, found when it was built, could not compile and link a program "
        "(the variable CUDAHOSTCXX names the C++ compiler that it is to use): ${error}")
    endif()
  else()
    set(VISIONZIP_CUDA_MISSING_REASON "no nvcc was found when it was built")
  endif()
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    set(VISIONZIP_CUDA_FOUND ON)
    set(VISIONZIP_CUDA_MISSING_REASON "")
    set(VISIONZIP_CUDA_VERSION "${CMAKE_CUDA_COMPILER_VERSION}")
    visionzip_choose_architectures(VISIONZIP_CUDA_ARCHITECTURES)
    find_library(VISIONZIP_CUDART cudart_static REQUIRED NO_DEFAULT_PATH
      PATHS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} "${nvcc_library_dir}")
  endif()
endif()

if(VISIONZIP_CUDA_FOUND)
  list(JOIN VISIONZIP_CUDA_ARCHITECTURES " " architectures)
  message(STATUS "CUDA library: nvcc ${VISIONZIP_CUDA_VERSION}, architectures ${architectures}")
elseif(VISIONZIP_WITH_CUDA STREQUAL ON)
  message(FATAL_ERROR "VISIONZIP_WITH_CUDA=ON, but ${VISIONZIP_CUDA_MISSING_REASON}")
else()
  message(STATUS "No CUDA library: ${VISIONZIP_CUDA_MISSING_REASON}")
endif()
