# so8t_apply_patches(TREE DIRECTORY): applies DIRECTORY/*.patch to TREE in the order of their names.
#
# A patch that is already in is left alone (git is asked, there are no stamp files), so running it
# twice changes nothing. A patch that neither is in nor fits stops with git's own report of the hunk.

function(so8t_apply_patches TREE DIRECTORY)
    find_program(GIT_EXECUTABLE git REQUIRED)
    # without a ceiling, `git apply` inside another repository silently does nothing
    get_filename_component(parent "${TREE}" DIRECTORY)
    set(git "${CMAKE_COMMAND}" -E env "GIT_CEILING_DIRECTORIES=${parent}" "${GIT_EXECUTABLE}" -C "${TREE}" apply)

    file(GLOB patches "${DIRECTORY}/*.patch")
    list(SORT patches)
    foreach(patch IN LISTS patches)
        get_filename_component(name "${patch}" NAME)
        execute_process(COMMAND ${git} --reverse --check "${patch}"
            RESULT_VARIABLE missing OUTPUT_QUIET ERROR_QUIET)
        if(NOT missing)
            continue()
        endif()
        execute_process(COMMAND ${git} --whitespace=nowarn --check "${patch}"
            RESULT_VARIABLE failed ERROR_VARIABLE error OUTPUT_QUIET)
        if(failed)
            message(FATAL_ERROR
                "so8t: ${name} does not fit the tree ${TREE}:\n${error}"
                "The tree is neither the pinned llama.cpp (LLAMA_CPP_VERSION) nor already patched. "
                "Delete it and run again, or port the hunk as docs/updating-llama-cpp.md describes.")
        endif()
        execute_process(COMMAND ${git} --whitespace=nowarn "${patch}" COMMAND_ERROR_IS_FATAL ANY)
        message(STATUS "so8t: applied ${name}")
    endforeach()
endfunction()
