# Fetches and patches llama.cpp, sets its options and adds it. Every option is a default: -DNAME=VALUE overrides it.

set(LLAMA_DIR ${CMAKE_SOURCE_DIR}/vendor/llama.cpp)

find_package(Python3 3.10 COMPONENTS Interpreter)
if (NOT Python3_FOUND)
    message(FATAL_ERROR "Python 3.10 or newer is needed to fetch llama.cpp, and none was found. "
        "Install it, or name it with -DPython3_EXECUTABLE=...")
endif()

execute_process(
    COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/cmake/fetch_llama.py --dest ${LLAMA_DIR}
    RESULT_VARIABLE result ERROR_VARIABLE error)
if (NOT result EQUAL 0)
    string(REPLACE "\n" "\n  " error "${error}")
    message(FATAL_ERROR "\n  ${error}")
endif()

# A changed lock or patch must reach this file again at the next build.
file(GLOB patches CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/patches/*.patch)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
    ${CMAKE_SOURCE_DIR}/llama.cpp.lock ${CMAKE_SOURCE_DIR}/cmake/fetch_llama.py ${patches})

file(STRINGS llama.cpp.lock PAC_LLAMA_COMMIT REGEX "^commit" LIMIT_COUNT 1)
string(REGEX REPLACE ".*\"(.*)\".*" "\\1" PAC_LLAMA_COMMIT "${PAC_LLAMA_COMMIT}")

include(${CMAKE_CURRENT_LIST_DIR}/llama-options.cmake)

add_subdirectory(${LLAMA_DIR} vendor/llama.cpp EXCLUDE_FROM_ALL)
include(${CMAKE_CURRENT_LIST_DIR}/amx.cmake)
pac_amx(${LLAMA_DIR})
