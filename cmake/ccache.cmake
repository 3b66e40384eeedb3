# ccache for all targets, ours and llama.cpp's (which leaves the matter alone when a launcher is set).
# With the base directory, objects are found again when the same sources are built in another folder: a fresh clone,
# or the stock build beside this one.

if (NOT PAC_CCACHE_BASE)
    set(PAC_CCACHE_BASE ${CMAKE_SOURCE_DIR})
endif()
option(PYAIRCACHE_CCACHE "Use ccache when it is installed" ON)
find_program(PYAIRCACHE_CCACHE_PROGRAM ccache)
mark_as_advanced(PYAIRCACHE_CCACHE_PROGRAM)
if (PYAIRCACHE_CCACHE AND PYAIRCACHE_CCACHE_PROGRAM)
    foreach (lang C CXX CUDA OBJC OBJCXX)
        if (NOT CMAKE_${lang}_COMPILER_LAUNCHER)
            set(CMAKE_${lang}_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${PAC_CCACHE_BASE}
                CCACHE_SLOPPINESS=time_macros ${PYAIRCACHE_CCACHE_PROGRAM})
        endif()
    endforeach()
endif()
