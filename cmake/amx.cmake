# pac_amx(LLAMA_DIR): after llama.cpp was added. GCC 12 takes it that loading the AMX tile configuration reads the first
# bytes of it only, and its dead store elimination drops the rest: the first matrix product on a CPU with AMX then ends
# the process (ggml-cpu/amx/mmq.cpp, ggml_tile_config_init). The unpatched build for comparison needs it just as well.
function (pac_amx llama_dir)
    if (CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
        set_source_files_properties(${llama_dir}/ggml/src/ggml-cpu/amx/mmq.cpp DIRECTORY ${llama_dir}/ggml/src
            PROPERTIES COMPILE_OPTIONS -fno-dse)
    endif()
endfunction()
