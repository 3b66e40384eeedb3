# Sanitizers and fuzz targets (docs/robustness.md): included before llama.cpp, so that its code and ours get the same.

set(PYAIRCACHE_SANITIZE "" CACHE STRING "Sanitizers for all code: \"address;undefined\" or \"thread\"; empty: none")
option(PYAIRCACHE_FUZZ "Link the programs of fuzz/ with libFuzzer; needs clang and PYAIRCACHE_SANITIZE" OFF)

if (PYAIRCACHE_SANITIZE)
    string(REPLACE ";" "," kinds "${PYAIRCACHE_SANITIZE}")
    # vptr asks for RTTI of the same library, which hidden classes do not have. -O1 comes after the build type's -O3.
    add_compile_options(-fsanitize=${kinds} -fno-sanitize=vptr -fno-omit-frame-pointer -O1 -g1)
    add_link_options(-fsanitize=${kinds})
    add_compile_definitions(_GLIBCXX_ASSERTIONS) # an index past the end of a vector's size, inside its capacity
endif()

if (PYAIRCACHE_FUZZ AND NOT (CMAKE_CXX_COMPILER_ID STREQUAL "Clang" AND PYAIRCACHE_SANITIZE))
    message(FATAL_ERROR "PYAIRCACHE_FUZZ needs clang (CC=clang CXX=clang++; Debian: apt-get install clang) and "
        "-DPYAIRCACHE_SANITIZE=\"address;undefined\".")
endif()

# pac_coverage(TARGET...): libFuzzer sees which of the target's branches an input takes.
function (pac_coverage)
    if (PYAIRCACHE_FUZZ)
        foreach (target ${ARGN})
            target_compile_options(${target} PRIVATE -fsanitize=fuzzer-no-link)
        endforeach()
    endif()
endfunction()
