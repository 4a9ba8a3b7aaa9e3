# cmake -DCMD="program;arguments" -DMUST_MATCH=regex -P run-checked.cmake
#
# Upstream's test tools exit with 0 when nothing was tested, so a run counts only with exit code 0 AND a
# line that says how much was tested.

execute_process(COMMAND ${CMD} RESULT_VARIABLE rc OUTPUT_VARIABLE out ERROR_VARIABLE err)
message("${out}${err}")
if(NOT rc EQUAL 0)
    message(FATAL_ERROR "exit code ${rc}: ${CMD}")
endif()
if(NOT "${out}${err}" MATCHES "${MUST_MATCH}")
    message(FATAL_ERROR "no line matches '${MUST_MATCH}': ${CMD}")
endif()
