// What llama-server's flags and the fields of a request say about compression: the same five names in both.
#pragma once

#include "llama-aircache.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

// of a request; the method first, because it brings parts of its own that the others replace
inline constexpr const char * COMMON_AIRCACHE_FIELDS[] = {
    "aircache_keep", "aircache_method", "aircache_alpha", "aircache_window", "aircache_allocation",
};

struct common_params_aircache {
    float       keep   = 1.0f;       // kept share of the visual cells, (0, 1]; 1: nothing is done
    std::string method = "aircache"; // llama_aircache_method_by_name
    float       alpha  = 0.0f;       // threshold of an elite window, (0, 1]; 0: the method's own
    std::string window;              // api/grammar.h has the words; "": the method's own
    std::string allocation;          // likewise

    uint32_t    request_fields = ~0u;  // those of COMMON_AIRCACHE_FIELDS that requests may set, a bit each
    bool        of_request = false;    // a request's own, not the server's
    std::string refused;               // why this server can compress no request, empty if it can

    // anything to do? false: requests behave exactly as without compression
    bool active() const { return keep < 1.0f && method != "full"; }

    // Each checks its value and throws std::invalid_argument.
    void set_keep      (double value);
    void set_method    (const std::string & value);
    void set_alpha     (double value);
    void set_window    (const std::string & value);
    void set_allocation(const std::string & value);

    // all, none, or names with commas between them: keep,method
    void set_request_fields(const std::string & value);

    // The same by a field's name; value: the text of a flag.
    void set(const std::string & field, const std::string & value);

    // Throws std::invalid_argument where requests may not set the field.
    void check_allowed(const std::string & field) const;

    // The method that all of this asks for. Throws std::invalid_argument naming the field where parts do not fit together.
    llama_aircache_method resolve() const;

    // a part of the resolved method as text, which reads back to the same
    std::string part(const char * name) const;

    bool operator==(const common_params_aircache & other) const;
};

// for messages: 80 characters of a text at most, all of them printable
std::string common_aircache_shown(const std::string & text);

//
// flags of llama-server: --aircache-keep SHARE and so on
//

struct common_aircache_flag {
    const char * field;
    const char * name;
    const char * env;
    const char * hint;
    std::string  help;
};

inline constexpr size_t COMMON_AIRCACHE_N_FLAGS = 6;
const common_aircache_flag & common_aircache_get_flag(size_t i);

// add(flag, handler) for each; P: common_params, which this header cannot know
template <class P, class Add, size_t... I>
void common_aircache_add_flags(Add add, std::index_sequence<I...>) {
    (add(common_aircache_get_flag(I), +[](P & params, const std::string & value) {
        params.aircache.set(common_aircache_get_flag(I).field, value);
    }), ...);
}

template <class P, class Add>
void common_aircache_add_flags(Add add) {
    common_aircache_add_flags<P>(add, std::make_index_sequence<COMMON_AIRCACHE_N_FLAGS>());
}
