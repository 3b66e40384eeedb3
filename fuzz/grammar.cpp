// The texts of flags and request fields: each is taken or refused with std::invalid_argument in a message that a user
// can read, and what was taken means the same when it is read back.
//
// Input: lines, "FIELD VALUE" with the field's number as first byte.
#include "fuzz.h"

#include "aircache-params.h"
#include "llama.h"

#include <cstring>
#include <stdexcept>
#include <string>

static const char * const FIELDS[] = { "aircache_keep", "aircache_method", "aircache_alpha", "aircache_window", "aircache_allocation", "aircache_none" };

static void check_message(const std::invalid_argument & e, size_t n_given) {
    REQUIRE(strlen(e.what()) > 10 && strlen(e.what()) < 600 + n_given, "message \"%s\"", e.what());
}

static bool same(const llama_aircache_method & a, const llama_aircache_method & b) {
    return a.keep == b.keep && a.window == b.window && a.alpha == b.alpha && a.elite_content == b.elite_content &&
        a.elite_last == b.elite_last && a.text_weights == b.text_weights && a.allocation == b.allocation &&
        ((a.window != LLAMA_AIRCACHE_WINDOW_LAST && a.window != LLAMA_AIRCACHE_WINDOW_VISUAL) || a.window_n == b.window_n);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    const std::string text((const char *) data, size);

    common_params_aircache params;
    for (size_t i = 0; i < text.size(); ) {
        const size_t end = std::min(text.find('\n', i), text.size());
        const std::string field = FIELDS[(uint8_t) text[i] % 6];
        const std::string value = text.substr(std::min(i + 1, end), end - std::min(i + 1, end));
        i = end + 1;

        const auto before = params;
        try {
            params.set(field, value);
        } catch (const std::invalid_argument & e) {
            check_message(e, value.size());
            REQUIRE(params == before, "a refused value of %s was taken", field.c_str());
        }
    }
    try {
        const auto method = params.resolve();
        REQUIRE(method.keep > 0 && method.keep <= 1 && method.alpha > 0 && method.alpha <= 1, "keep %g, alpha %g", method.keep, method.alpha);
        REQUIRE(method.window_n >= 0 && method.window_n <= 65536, "window_n %d", method.window_n);

        std::vector<float>   scores = { 1, 2, 3, 4 };
        std::vector<double>  alive  = { 1, 2 };
        std::vector<int32_t> budgets(2);
        const int32_t status = llama_aircache_allocate(&method, scores.data(), alive.data(), 2, 2, budgets.data(), nullptr, nullptr);
        REQUIRE(status == LLAMA_AIRCACHE_OK, "the library refuses what the parser took: %s", llama_aircache_error());

        common_params_aircache again = params;
        if (method.score == LLAMA_AIRCACHE_SCORE_ATTENTION) {
            again.alpha = 0.0f; // a window's name holds it
            again.set_window(params.part("window"));
        }
        again.set_allocation(params.part("allocation"));
        REQUIRE(same(again.resolve(), method), "window '%s' is read back as '%s'", params.part("window").c_str(), again.part("window").c_str());
    } catch (const std::invalid_argument & e) {
        check_message(e, size);
    }
    return 0;
}
