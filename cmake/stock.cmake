# Target `stock` (not built by default): the unpatched libllama with the options of this build, in BUILD/stock/lib.
# Tests put that folder first in LD_LIBRARY_PATH and expect the same bits from it as from ours at keep = 1.

set(PYAIRCACHE_STOCK_TARGETS llama CACHE STRING "What target `stock` builds (mtmd, llama-server, ... besides)")
set(STOCK ${CMAKE_BINARY_DIR}/stock)

# All options that stand in this build's cache, so that the two differ by the patches only.
get_cmake_property(names CACHE_VARIABLES)
set(text)
foreach (name ${names})
    get_property(type CACHE ${name} PROPERTY TYPE)
    if (name MATCHES "^(GGML_|LLAMA_|MTMD_|BUILD_SHARED_LIBS|CMAKE_BUILD_TYPE|PYAIRCACHE_|CMAKE_MAKE_PROGRAM)|^CMAKE_[A-Z]+_(COMPILER|FLAGS)"
            AND type MATCHES "BOOL|STRING|PATH|FILEPATH")
        string(APPEND text "set(${name} [==[${${name}}]==] CACHE ${type} \"\" FORCE)\n")
    endif()
endforeach()
file(GENERATE OUTPUT ${STOCK}/options.cmake CONTENT "${text}")

add_custom_target(stock
    COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/cmake/fetch_llama.py --no-patches --dest ${STOCK}/vendor/llama.cpp
    COMMAND ${CMAKE_COMMAND} -S ${CMAKE_SOURCE_DIR}/cmake/stock -B ${STOCK}/build -G ${CMAKE_GENERATOR}
        -C ${STOCK}/options.cmake -DSTOCK=${STOCK} -DPAC_LLAMA_COMMIT=${PAC_LLAMA_COMMIT}
    COMMAND ${CMAKE_COMMAND} --build ${STOCK}/build
    USES_TERMINAL VERBATIM)
