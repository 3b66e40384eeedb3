# Our defaults for llama.cpp's options; the stock build includes this file too.

foreach (option LLAMA_BUILD_COMMON LLAMA_BUILD_TOOLS LLAMA_BUILD_SERVER BUILD_SHARED_LIBS)
    set(${option} ON CACHE BOOL "pyaircache needs this")
endforeach()
# No tests, no examples, no web page, nothing that would need libcurl or OpenSSL; and its warnings are not ours (GCC 12
# alone finds 1500 in its own AVX-512 headers): our sources ask for theirs themselves.
foreach (option LLAMA_BUILD_TESTS LLAMA_BUILD_EXAMPLES LLAMA_BUILD_APP LLAMA_BUILD_UI LLAMA_USE_PREBUILT_UI
        LLAMA_OPENSSL LLAMA_TOOLS_INSTALL LLAMA_TESTS_INSTALL LLAMA_ALL_WARNINGS)
    set(${option} OFF CACHE BOOL "off in pyaircache by default")
endforeach()

# llama.cpp and ggml ask git for their commit and would get ours: then every commit here would compile them anew.
set(LLAMA_BUILD_NUMBER 0)
set(LLAMA_BUILD_COMMIT ${PAC_LLAMA_COMMIT})
set(GIT_EXECUTABLE true)
set(GIT_EXE true)
