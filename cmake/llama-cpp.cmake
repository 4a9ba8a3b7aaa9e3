# Provides the patched llama.cpp tree.
#
#   include(cmake/llama-cpp.cmake)               in CMakeLists.txt: sets LLAMA_CPP_SOURCE
#   cmake -P cmake/llama-cpp.cmake               `make source`: only fetches and patches
#
# -DLLAMA_CPP_SOURCE=dir names a tree of your own; it is patched in place. Otherwise the pinned
# llama-cpp-python sdist, which holds the whole llama.cpp tree, is downloaded with pip, its sha256
# checked, and unpacked to build/llama.cpp.

cmake_minimum_required(VERSION 3.24)

get_filename_component(SO8T_ROOT "${CMAKE_CURRENT_LIST_DIR}" DIRECTORY)

file(STRINGS "${SO8T_ROOT}/LLAMA_CPP_VERSION" so8t_pin)
list(GET so8t_pin 0 so8t_package)
list(GET so8t_pin 2 so8t_sha256)
string(REPLACE " " "==" so8t_requirement "${so8t_package}")
string(REGEX REPLACE "^sha256 " "" so8t_sha256 "${so8t_sha256}")
string(REGEX REPLACE "^([^ ]+) (.*)$" "\\1-\\2.tar.gz" so8t_sdist "${so8t_package}")
string(REPLACE "llama-cpp-python-" "llama_cpp_python-" so8t_sdist "${so8t_sdist}")

# sets RESULT to the path of the verified sdist, downloading it when the cache has none
function(so8t_download_sdist RESULT)
    if(DEFINED ENV{SO8T_CACHE_DIR})
        set(cache "$ENV{SO8T_CACHE_DIR}")
    elseif(DEFINED ENV{XDG_CACHE_HOME})
        set(cache "$ENV{XDG_CACHE_HOME}/llama_so8t")
    else()
        set(cache "$ENV{HOME}/.cache/llama_so8t")
    endif()
    set(sdist "${cache}/${so8t_sdist}")
    if(EXISTS "${sdist}")
        file(SHA256 "${sdist}" found)
        if(found STREQUAL so8t_sha256)
            set(${RESULT} "${sdist}" PARENT_SCOPE)
            return()
        endif()
        file(REMOVE "${sdist}")
    endif()

    if(NOT Python3_EXECUTABLE)
        find_program(Python3_EXECUTABLE NAMES python3 python REQUIRED)
    endif()
    message(STATUS "so8t: downloading ${so8t_requirement}")
    set(incoming "${cache}/incoming")
    file(REMOVE_RECURSE "${incoming}")
    file(MAKE_DIRECTORY "${incoming}")
    # pip asks the package for its metadata, which takes scikit-build-core; without isolation it is the installed one.
    # In a fresh environment pip would apply --no-binary to cmake as well, and compile it.
    execute_process(
        COMMAND "${Python3_EXECUTABLE}" -m pip download --quiet --disable-pip-version-check
                --no-deps --no-build-isolation --no-binary :all: --dest "${incoming}" "${so8t_requirement}"
        RESULT_VARIABLE failed ERROR_VARIABLE error OUTPUT_VARIABLE error)
    if(failed OR NOT EXISTS "${incoming}/${so8t_sdist}")
        message(FATAL_ERROR
            "so8t: pip could not download ${so8t_requirement}:\n${error}\n"
            "Check the network, or pass -DLLAMA_CPP_SOURCE=<llama.cpp tree>.")
    endif()
    file(SHA256 "${incoming}/${so8t_sdist}" found)
    if(NOT found STREQUAL so8t_sha256)
        message(FATAL_ERROR
            "so8t: ${so8t_sdist} has sha256 ${found}, expected ${so8t_sha256} (LLAMA_CPP_VERSION).\n"
            "The download is damaged or not the pinned release; it was not unpacked.")
    endif()
    file(RENAME "${incoming}/${so8t_sdist}" "${sdist}")
    file(REMOVE_RECURSE "${incoming}")
    set(${RESULT} "${sdist}" PARENT_SCOPE)
endfunction()

# unpacks the pinned tree to TREE unless it is there already, made from the same sdist and patches
function(so8t_provide_tree TREE)
    file(GLOB patches "${SO8T_ROOT}/ggml-patches/*.patch")
    set(stamp "${so8t_sha256}")
    foreach(patch IN LISTS patches)
        file(SHA256 "${patch}" hash)
        string(APPEND stamp " ${hash}")
    endforeach()
    set(stamp_file "${TREE}.stamp")
    if(EXISTS "${TREE}/CMakeLists.txt" AND EXISTS "${stamp_file}")
        file(READ "${stamp_file}" found)
        if(found STREQUAL stamp)
            return()
        endif()
    endif()

    so8t_download_sdist(sdist)
    set(unpacked "${TREE}.unpacked")
    file(REMOVE_RECURSE "${unpacked}" "${TREE}")
    file(REMOVE "${stamp_file}")
    file(ARCHIVE_EXTRACT INPUT "${sdist}" DESTINATION "${unpacked}" PATTERNS "*/vendor/llama.cpp/*")
    file(GLOB tree LIST_DIRECTORIES true "${unpacked}/*/vendor/llama.cpp")
    file(REMOVE "${tree}/.git") # a dangling submodule link, which would stop git apply
    file(RENAME "${tree}" "${TREE}")
    file(REMOVE_RECURSE "${unpacked}")
    include("${SO8T_ROOT}/cmake/apply-patches.cmake")
    so8t_apply_patches("${TREE}" "${SO8T_ROOT}/ggml-patches")
    file(WRITE "${stamp_file}" "${stamp}")
endfunction()

if(LLAMA_CPP_SOURCE)
    get_filename_component(LLAMA_CPP_SOURCE "${LLAMA_CPP_SOURCE}" ABSOLUTE)
    if(NOT EXISTS "${LLAMA_CPP_SOURCE}/src/llama-arch.cpp")
        message(FATAL_ERROR "so8t: LLAMA_CPP_SOURCE=${LLAMA_CPP_SOURCE} is no llama.cpp source tree")
    endif()
    include("${SO8T_ROOT}/cmake/apply-patches.cmake")
    so8t_apply_patches("${LLAMA_CPP_SOURCE}" "${SO8T_ROOT}/ggml-patches")
else()
    set(LLAMA_CPP_SOURCE "${SO8T_ROOT}/build/llama.cpp")
    so8t_provide_tree("${LLAMA_CPP_SOURCE}")
endif()
