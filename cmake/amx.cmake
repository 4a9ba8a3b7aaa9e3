# so8t_disable_broken_amx(TARGETS...): compiles ggml-cpu without AMX where a program that uses it as ggml does is ended by SIGILL.
# _tile_loadconfig of gcc 12 tells the optimizer that it reads 8 bytes; it reads 64, and what ggml writes into the others is
# dropped. A virtual machine may also offer AMX without having it.

include(CheckCXXSourceRuns)

function(so8t_disable_broken_amx)
    if(NOT GGML_NATIVE OR CMAKE_CROSSCOMPILING OR NOT CMAKE_SYSTEM_NAME STREQUAL "Linux"
            OR NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
        return()
    endif()
    set(CMAKE_REQUIRED_FLAGS "-O3 -march=native")
    check_cxx_source_runs([[
        #if defined(__AMX_TILE__)
        #include <immintrin.h>
        #include <sys/syscall.h>
        #include <unistd.h>

        struct tile_config {
            unsigned char palette_id, start_row, reserved[14];
            unsigned short colsb[16];
            unsigned char rows[16];
        };

        int main() {
            if (syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XFEATURE_XTILEDATA */) != 0) {
                return 0; // ggml uses none then
            }
            alignas(64) tile_config config = {};
            config.palette_id = 1;
            for (int i = 0; i < 8; ++i) {
                config.rows[i]  = 16;
                config.colsb[i] = 64;
            }
            _tile_loadconfig(&config);
            _tile_zero(4);
            _tile_release();
            return 0;
        }
        #else
        int main() { return 0; }
        #endif
    ]] SO8T_AMX_WORKS)
    if(NOT SO8T_AMX_WORKS)
        message(STATUS "so8t: a program that uses AMX as ggml does fails here (cmake/amx.cmake), so ggml is built without it")
        foreach(target IN LISTS ARGN)
            target_compile_options(${target} PRIVATE -mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
        endforeach()
    endif()
endfunction()
