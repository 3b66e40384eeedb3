// What llama-server's flags and the fields of a request say about compression: the parts of a method (api/grammar.h), each
// by its name with "aircache" before it. --aircache-uniform-share 0.5 is "aircache_uniform_share": 0.5.
//
// llama.cpp's common.h includes this, and so do most of its files: nothing is included here that changes often.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

struct llama_aircache_method;

struct common_params_aircache {
    double      keep   = 1.0;        // kept share of the visual cells, (0, 1]; 1: nothing is done
    std::string method = "aircache"; // llama_aircache_method_by_name
    std::map<std::string, std::string> parts; // what replaces parts of the method: their texts by their names

    uint32_t    request_fields = ~0u;  // those of common_aircache_fields() that requests may set, a bit each
    bool        of_request = false;    // a request's own, not the server's
    std::string refused;               // why this server can compress no request, empty if it can

    // anything to do? false: requests behave exactly as without compression
    bool active() const { return keep < 1.0 && method != "full"; }

    // A field or flag by its name, e.g. "aircache_keep"; value: its text. Throws std::invalid_argument, naming it; then
    // nothing has changed.
    void set(const std::string & field, const std::string & value);

    // Throws std::invalid_argument where requests may not set the field.
    void check_allowed(const std::string & field) const;

    // The method that all of this asks for. Throws std::invalid_argument naming the field where parts do not fit together.
    llama_aircache_method resolve() const;

    // a part of the resolved method as text, which reads back to the same
    std::string part(const std::string & name) const;

    bool operator==(const common_params_aircache & other) const;

private:
    void set_request_fields(const std::string & value);
};

// Of a request, in the order in which they are to be read: the method is first, because it brings parts of its own that
// the others replace.
struct common_aircache_field {
    enum { NUMBER, WHOLE, ON_OFF, WORDS } kind;
    std::string name; // "aircache_" and the part's
    std::string part;
};
const std::vector<common_aircache_field> & common_aircache_fields();

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

// null behind the last one
const common_aircache_flag * common_aircache_get_flag(size_t i);

// add(flag, handler) for each; P: common_params, which this header cannot know. A handler is a plain function and so has
// its flag's number in its type: there are functions for more flags than there are.
inline constexpr size_t COMMON_AIRCACHE_MAX_FLAGS = 32;

template <class P, class Add, size_t... I>
void common_aircache_add_flags(Add add, std::index_sequence<I...>) {
    const auto add_one = [&](const common_aircache_flag * flag, auto handler) {
        if (flag) {
            add(*flag, handler);
        }
    };
    (add_one(common_aircache_get_flag(I), +[](P & params, const std::string & value) {
        params.aircache.set(common_aircache_get_flag(I)->field, value);
    }), ...);
}

template <class P, class Add>
void common_aircache_add_flags(Add add) {
    common_aircache_add_flags<P>(add, std::make_index_sequence<COMMON_AIRCACHE_MAX_FLAGS>());
}
