// The texts of flags and request fields: each is taken or refused with std::invalid_argument in a message that a user
// can read, and what was taken means the same when it is read back.
//
// Input: lines, a value behind a byte that says which field it is of.
#include "fuzz.h"

#include "aircache-params.h"
#include "llama-aircache.h"
#include "llama.h"

#include <cstring>
#include <stdexcept>
#include <string>

static const char * const FIELDS[] = { "aircache_keep", "aircache_method", "aircache_alpha", "aircache_window", "aircache_allocation", "aircache_none" };

// A byte below 128 is one of the six above, as it was when there were no others: the corpus says the same for ever.
static std::string field_of(uint8_t byte) {
    const auto & fields = common_aircache_fields();
    return byte < 128 ? FIELDS[byte % 6] : fields[byte % fields.size()].name;
}

static void check_message(const std::invalid_argument & e, size_t n_given) {
    REQUIRE(strlen(e.what()) > 10 && strlen(e.what()) < 600 + n_given, "message \"%s\"", e.what());
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    const std::string text((const char *) data, size);

    common_params_aircache params;
    for (size_t i = 0; i < text.size(); ) {
        const size_t end = std::min(text.find('\n', i), text.size());
        const std::string field = field_of(text[i]);
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
        again.parts.erase("alpha"); // a window's text holds it
        for (const auto & field : common_aircache_fields()) {
            if (field.part != "alpha") {
                again.set(field.name, params.part(field.part));
            }
        }
        for (const auto & field : common_aircache_fields()) {
            REQUIRE(field.part == "alpha" || params.part(field.part) == again.part(field.part), "%s '%s' is read back as '%s'",
                field.part.c_str(), params.part(field.part).c_str(), again.part(field.part).c_str());
        }
    } catch (const std::invalid_argument & e) {
        check_message(e, size);
    }
    return 0;
}
