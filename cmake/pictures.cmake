# The decoders of the pictures in requests: native/server/pictures. Apart from llama.cpp, so that tests can run them alone.
# WebP needs the system's libwebp (Debian: libwebp-dev) and is refused by name without it.

set(PAC_WEBP AUTO CACHE STRING "Read WebP pictures with the system's libwebp: AUTO, ON or OFF")
set_property(CACHE PAC_WEBP PROPERTY STRINGS AUTO ON OFF)

file(GLOB PAC_PICTURE_SOURCES CONFIGURE_DEPENDS native/server/pictures/*.cpp)
add_library(aircache-pictures STATIC ${PAC_PICTURE_SOURCES})
target_include_directories(aircache-pictures PUBLIC ${NATIVE}/server)
target_link_libraries(aircache-pictures PRIVATE vendor::stb)
target_compile_features(aircache-pictures PUBLIC cxx_std_17)
target_compile_options(aircache-pictures PRIVATE ${PAC_WARNINGS})
set_target_properties(aircache-pictures PROPERTIES POSITION_INDEPENDENT_CODE ON)

if (NOT PAC_WEBP STREQUAL "OFF")
    find_path(PAC_WEBP_INCLUDE webp/demux.h)
    find_library(PAC_WEBP_LIBRARY webp)
    find_library(PAC_WEBPDEMUX_LIBRARY webpdemux)
    if (PAC_WEBP_INCLUDE AND PAC_WEBP_LIBRARY AND PAC_WEBPDEMUX_LIBRARY)
        target_compile_definitions(aircache-pictures PRIVATE PAC_WEBP)
        target_include_directories(aircache-pictures SYSTEM PRIVATE ${PAC_WEBP_INCLUDE})
        target_link_libraries(aircache-pictures PRIVATE ${PAC_WEBPDEMUX_LIBRARY} ${PAC_WEBP_LIBRARY})
        message(STATUS "The server reads WebP with ${PAC_WEBP_LIBRARY}")
    elseif (PAC_WEBP STREQUAL "AUTO")
        message(STATUS "The server does not read WebP: libwebp was not found (Debian: libwebp-dev)")
    else()
        message(FATAL_ERROR "PAC_WEBP=${PAC_WEBP}, and libwebp was not found. Install it (Debian: libwebp-dev) or leave PAC_WEBP out.")
    endif()
endif()
