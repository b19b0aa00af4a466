# cmake -DGIT_EXECUTABLE= -DSOURCE_DIR= -DOUTPUT= -P: writes a header with the revision that is being built.
# "unknown" where there is no git, or where the sources are an unpacked sdist.

set(revision unknown)
# Without this test, an sdist unpacked inside somebody else's repository would take that one's revision.
if(GIT_EXECUTABLE AND EXISTS "${SOURCE_DIR}/.git")
  execute_process(
    COMMAND "${GIT_EXECUTABLE}" -C "${SOURCE_DIR}" describe --always --dirty --abbrev=12 "--exclude=*"
    OUTPUT_VARIABLE answer
    RESULT_VARIABLE status
    OUTPUT_STRIP_TRAILING_WHITESPACE
    ERROR_QUIET)
  if(status EQUAL 0)
    set(revision "${answer}")
  endif()
endif()

set(content "#define VISIONZIP_GIT_REVISION \"${revision}\"\n")
set(previous "")
if(EXISTS "${OUTPUT}")
  file(READ "${OUTPUT}" previous)
endif()
if(NOT content STREQUAL previous)
  file(WRITE "${OUTPUT}" "${content}")
endif()
