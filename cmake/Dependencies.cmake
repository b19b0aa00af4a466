# Python, pybind11 and torch, all from the interpreter that runs the build.
#
# find_package(Torch) is not used: it wants CUDA, protobuf and more.  The stable ABI needs only torch's headers and the
# names of its libraries.

find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)

function(visionzip_ask_python variable code what)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c "${code}"
    OUTPUT_VARIABLE answer
    ERROR_VARIABLE error
    RESULT_VARIABLE status
    OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR
      "${Python_EXECUTABLE} has no ${what}.  Install it first (requirements/build.txt lists what a build needs), and "
      "pass --no-build-isolation to pip.\n${error}")
  endif()
  set(${variable} "${answer}" PARENT_SCOPE)
endfunction()

visionzip_ask_python(pybind11_DIR "import pybind11; print(pybind11.get_cmake_dir())" pybind11)
find_package(pybind11 CONFIG REQUIRED)

# Found without importing it, which would take seconds.
visionzip_ask_python(TORCH_DIR
  "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])" torch)
file(STRINGS "${TORCH_DIR}/version.py" torch_version_line REGEX "^__version__ = ")
string(REGEX REPLACE ".*'([^']+)'.*" "\\1" TORCH_VERSION "${torch_version_line}")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${TORCH_DIR}/version.py")

if(TORCH_VERSION VERSION_LESS 2.10)
  message(FATAL_ERROR "torch 2.10 or later is needed; ${TORCH_DIR} is ${TORCH_VERSION}")
endif()
message(STATUS "torch ${TORCH_VERSION}: ${TORCH_DIR}")
