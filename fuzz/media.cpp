// What stands for pictures in a request - base64, URLs, content parts - until a file's bytes: taken, or refused with
// std::invalid_argument, in memory of the request's size.
//
// Input: the way in (1 byte), then a text.
#include "fuzz.h"

#include "aircache-media.h"

#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>

static void check_files(const std::vector<std::vector<uint8_t>> & files, size_t size) {
    size_t n = 0;
    for (const auto & file : files) {
        n += file.size();
    }
    REQUIRE(n <= size, "%zu bytes of %zu", n, size);
}

static void read(uint8_t kind, const std::string & text) {
    std::vector<std::vector<uint8_t>> files;
    if (kind == 0) {
        server_aircache_data(text, files);
        check_files(files, text.size());
        return;
    }
    const auto json = common_json::parse_no_throw(text);
    if (json.is_discarded() || !json.is_object()) {
        return;
    }
    if (kind == 1) {
        if (server_aircache_data(server_aircache_url(json, "image_url"), files)) {
            check_files(files, text.size());
        }
    } else if (kind == 2) {
        server_aircache_check_source(json);
    } else if (json.contains("prompt_string") && json.contains("multimodal_data")) {
        for (const auto & entry : json.at("multimodal_data")) {
            files.push_back(server_aircache_file(json, entry));
        }
        check_files(files, text.size());
    }
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    fuzz_input in = { data, size };
    const uint8_t kind = in.byte() % 4;
    const std::string text((const char *) in.data, in.size);
    try {
        read(kind, text);
    } catch (const std::invalid_argument & e) {
        REQUIRE(strlen(e.what()) > 10 && strlen(e.what()) < 600, "message \"%s\"", e.what());
    } catch (const std::exception & e) {
        REQUIRE(false, "not an invalid_argument, so answered with 500: %s", e.what());
    }
    return 0;
}
