# What is built by default and where it goes: pyaircache/lib and pyaircache/bin, inside the Python package.

list(APPEND PAC_LIBRARIES ggml ggml-base llama mtmd llama-common)
set(PAC_PROGRAMS llama-server llama-bench llama-batched-bench llama-quantize)
if (TARGET ggml-rpc-server)
    list(APPEND PAC_PROGRAMS ggml-rpc-server)
endif()
foreach (backend ${GGML_AVAILABLE_BACKENDS}) # a cached list: may name a backend that is off by now
    if (TARGET ${backend})
        list(APPEND PAC_BACKENDS ${backend})
    endif()
endforeach()
foreach (program ${PAC_PROGRAMS}) # llama.cpp keeps most programs' code in a library beside
    if (TARGET ${program}-impl)
        list(APPEND PAC_LIBRARIES ${program}-impl)
    endif()
endforeach()

if (APPLE)
    set(ORIGIN "@loader_path")
else()
    set(ORIGIN "$ORIGIN")
endif()
set_target_properties(${PAC_LIBRARIES} ${PAC_BACKENDS} PROPERTIES INSTALL_RPATH "${ORIGIN}")
set_target_properties(${PAC_PROGRAMS} PROPERTIES INSTALL_RPATH "${ORIGIN}/../lib")

# A versioned library is three names for one file, and a wheel holds no links: it would carry three copies.
# Headers are not installed.
foreach (target ${PAC_LIBRARIES} ${PAC_BACKENDS})
    foreach (property VERSION SOVERSION PUBLIC_HEADER PRIVATE_HEADER)
        set_property(TARGET ${target} PROPERTY ${property})
    endforeach()
endforeach()

# llama.cpp's converter from Hugging Face's format, and the gguf package of the same commit: Python files that
# pyaircache.convert looks for beside the engine library, in the build tree and when installed.
set(converter ${CMAKE_LIBRARY_OUTPUT_DIRECTORY}/converter)
add_custom_target(converter ALL
    COMMAND ${CMAKE_COMMAND} -E copy_directory ${LLAMA_DIR}/conversion ${converter}/conversion
    COMMAND ${CMAKE_COMMAND} -E copy_directory ${LLAMA_DIR}/gguf-py/gguf ${converter}/gguf-py/gguf
    COMMAND ${CMAKE_COMMAND} -E copy ${LLAMA_DIR}/LICENSE ${converter}
    COMMAND ${CMAKE_COMMAND} -E copy ${LLAMA_DIR}/gguf-py/LICENSE ${converter}/gguf-py
    VERBATIM)

add_custom_target(pyaircache ALL DEPENDS ${PAC_LIBRARIES} ${PAC_BACKENDS} ${PAC_PROGRAMS})

set(destination pyaircache)
if (SKBUILD_STATE STREQUAL "editable")
    set(destination ${CMAKE_SOURCE_DIR}/pyaircache) # beside the sources, where Python finds the package then
endif()
install(TARGETS ${PAC_LIBRARIES} ${PAC_BACKENDS}
    LIBRARY DESTINATION ${destination}/lib
    RUNTIME DESTINATION ${destination}/lib
    ARCHIVE DESTINATION ${destination}/lib)
install(FILES native/include/pyaircache.h native/include/pyaircache-bench.h DESTINATION ${destination}/lib) # cffi reads them
install(DIRECTORY ${converter} DESTINATION ${destination}/lib
    FILES_MATCHING PATTERN "*.py" PATTERN "LICENSE" PATTERN "__pycache__" EXCLUDE PATTERN "scripts" EXCLUDE)
install(TARGETS ${PAC_PROGRAMS} RUNTIME DESTINATION ${destination}/bin)
if (GGML_BACKEND_DL) # programs look for loadable backends in their own folder, the engine in its own
    install(TARGETS ${PAC_BACKENDS} LIBRARY DESTINATION ${destination}/bin)
endif()
