# Gives a target build_info.h: what was built, from what, with what.

find_package(Git QUIET)

list(JOIN VISIONZIP_INSTRUCTION_SETS "," VISIONZIP_INSTRUCTION_SETS_JOINED)
list(JOIN VISIONZIP_CUDA_ARCHITECTURES "," VISIONZIP_CUDA_ARCHITECTURES_JOINED)
# It may quote a compiler.
string(REGEX REPLACE "([\"\\])" "\\\\\\1" VISIONZIP_CUDA_MISSING_REASON_ESCAPED "${VISIONZIP_CUDA_MISSING_REASON}")

set(VISIONZIP_BUILD_INFO_DIR "${PROJECT_BINARY_DIR}/generated")
configure_file(csrc/bindings/build_info.h.in "${VISIONZIP_BUILD_INFO_DIR}/build_info.h" @ONLY)

# The revision changes without any source changing, so it is asked for in every build, and git_revision.h is rewritten
# only where the answer is a new one: one tiny source file is then compiled again.
function(visionzip_add_build_info target)
  set(revision_header "${VISIONZIP_BUILD_INFO_DIR}/git_revision.h")
  add_custom_target(git_revision
    COMMAND "${CMAKE_COMMAND}"
      "-DGIT_EXECUTABLE=${GIT_EXECUTABLE}"
      "-DSOURCE_DIR=${PROJECT_SOURCE_DIR}"
      "-DOUTPUT=${revision_header}"
      -P "${PROJECT_SOURCE_DIR}/cmake/WriteGitRevision.cmake"
    BYPRODUCTS "${revision_header}"
    COMMENT "Asking for the git revision"
    VERBATIM)
  add_dependencies(${target} git_revision)
  target_include_directories(${target} PRIVATE "${VISIONZIP_BUILD_INFO_DIR}")
endfunction()
