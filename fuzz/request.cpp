// The aircache_* fields of a request's JSON, as llama-server reads them: taken, or refused with std::invalid_argument.
//
// Input: what the server allows (1 byte), then a body. Fields of others are left out: they are llama.cpp's to read.
#include "fuzz.h"

#include "aircache-params.h"
#include "llama-aircache.h"
#include "server-common.h"
#include "server-schema.h"

#include <cstring>
#include <exception>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    fuzz_input in = { data, size };
    const uint8_t kind = in.byte();

    const auto body = common_json::parse_no_throw(std::string((const char *) in.data, in.size));
    if (body.is_discarded() || !body.is_object()) {
        return 0;
    }
    common_json fields = common_json::object();
    for (const auto & field : common_aircache_fields()) {
        if (body.contains(field.name)) {
            fields[field.name] = body.at(field.name);
        }
    }

    static const llama_vocab * vocab = llama_model_get_vocab(fuzz_model());
    common_params params;
    params.n_parallel       = kind & 1 ? 4 : 1;
    params.aircache.refused = kind & 2 ? "this model" : "";
    if (kind & 4) {
        params.aircache.set("aircache_method", "snapkv");
        params.aircache.set("aircache_keep", "0.25");
    }
    try {
        const auto task   = server_schema::eval_llama_cmpl_schema(vocab, params, {}, fields);
        const auto method = task.aircache.resolve();
        REQUIRE(method.keep > 0 && method.keep <= 1, "keep %g", method.keep);
        REQUIRE(!(kind & 2) || !task.aircache.active(), "compressed where it is refused");
        REQUIRE(!(kind & 1) || !task.aircache.active() || method.window != LLAMA_AIRCACHE_WINDOW_ALL, "window all with several slots");
    } catch (const std::invalid_argument & e) {
        REQUIRE(strlen(e.what()) > 10, "message \"%s\"", e.what());
    } catch (const std::exception & e) {
        REQUIRE(false, "not an invalid_argument, so answered with 500: %s", e.what());
    }
    return 0;
}
