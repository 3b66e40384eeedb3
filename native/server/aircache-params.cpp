#include "aircache-params.h"

#include "api/grammar.h"

#include <algorithm>
#include <iterator>
#include <locale>
#include <sstream>
#include <stdexcept>
#include <tuple>

[[noreturn]] static void refuse(const char * field, const std::string & why) {
    throw std::invalid_argument(std::string(field) + " " + why);
}

std::string common_aircache_shown(const std::string & text) {
    return aircache::shown(text);
}

// 0.1 for 0.1f, as the Python package hands it over: budgets are to be the same
static double decimal(float value) {
    std::ostringstream res;
    res.imbue(std::locale::classic());
    res << value;
    return aircache::parse_number("keep", res.str());
}

// a field is named as its part is, behind aircache_; so are the grammar's messages
static void set_part(llama_aircache_method & m, const char * part, const std::string & text) {
    try {
        aircache::method_set(m, part, text);
    } catch (const std::invalid_argument & e) {
        throw std::invalid_argument("aircache_" + std::string(e.what()));
    }
}

//
// fields
//

void common_params_aircache::set_keep(double value) {
    keep = aircache::check_share("aircache_keep", value);
}

void common_params_aircache::set_alpha(double value) {
    alpha = aircache::check_share("aircache_alpha", value);
}

void common_params_aircache::set_method(const std::string & value) {
    auto m = llama_aircache_method_default();
    set_part(m, "method", value);
    method = value;
}

void common_params_aircache::set_window(const std::string & value) {
    auto m = llama_aircache_method_default();
    set_part(m, "window", value);
    window = value;
}

void common_params_aircache::set_allocation(const std::string & value) {
    auto m = llama_aircache_method_default();
    set_part(m, "allocation", value);
    allocation = value;
}

void common_params_aircache::set_request_fields(const std::string & value) {
    uint32_t res = 0;
    std::istringstream in(value == "none" ? "" : value);
    for (std::string word; std::getline(in, word, ','); ) {
        const size_t i = std::find_if(std::begin(COMMON_AIRCACHE_FIELDS), std::end(COMMON_AIRCACHE_FIELDS), [&](const char * field) {
            return "aircache_" + word == field;
        }) - std::begin(COMMON_AIRCACHE_FIELDS);
        if (i < std::size(COMMON_AIRCACHE_FIELDS)) {
            res |= 1u << i;
        } else if (value == "all") {
            res = ~0u;
        } else {
            refuse("aircache_request_fields", "must be all, none, or some of keep,method,alpha,window,allocation, got '" +
                common_aircache_shown(value) + "'");
        }
    }
    if (value.empty()) {
        refuse("aircache_request_fields", "must be all, none, or some of keep,method,alpha,window,allocation, got nothing");
    }
    request_fields = res;
}

void common_params_aircache::check_allowed(const std::string & field) const {
    for (size_t i = 0; i < std::size(COMMON_AIRCACHE_FIELDS); ++i) {
        if (field == COMMON_AIRCACHE_FIELDS[i] && !(request_fields >> i & 1)) {
            refuse(field.c_str(), "cannot be set by requests to this server (--aircache-request-fields)");
        }
    }
}

void common_params_aircache::set(const std::string & field, const std::string & value) {
    if      (field == "aircache_keep")       { set_keep(aircache::parse_number(field, value)); }
    else if (field == "aircache_alpha")      { set_alpha(aircache::parse_number(field, value)); }
    else if (field == "aircache_method")     { set_method(value); }
    else if (field == "aircache_window")     { set_window(value); }
    else if (field == "aircache_allocation") { set_allocation(value); }
    else if (field == "aircache_request_fields") { set_request_fields(value); }
    else                                     { refuse(field.c_str(), "does not exist"); }
}

llama_aircache_method common_params_aircache::resolve() const {
    auto m = llama_aircache_method_default();
    set_part(m, "method", method);
    m.keep = decimal(keep);
    if (!window.empty()) {
        set_part(m, "window", window);
    }
    if (!allocation.empty()) {
        set_part(m, "allocation", allocation);
    }
    if (alpha > 0.0f) {
        if (m.window != LLAMA_AIRCACHE_WINDOW_ELITE || m.score != LLAMA_AIRCACHE_SCORE_ATTENTION) {
            refuse("aircache_alpha", "is the threshold of elite windows, and method '" + method + "'" +
                    (window.empty() ? "" : " with window '" + window + "'") + " has none");
        }
        m.alpha = decimal(alpha);
    }
    return m;
}

std::string common_params_aircache::part(const char * name) const {
    return aircache::method_get(resolve(), name);
}

bool common_params_aircache::operator==(const common_params_aircache & other) const {
    const auto tie = [](const common_params_aircache & p) { return std::tie(p.keep, p.method, p.alpha, p.window, p.allocation); };
    return tie(*this) == tie(other);
}

//
// flags
//

const common_aircache_flag & common_aircache_get_flag(size_t i) {
    static const common_aircache_flag FLAGS[COMMON_AIRCACHE_N_FLAGS] = {
        { "aircache_keep", "--aircache-keep", "LLAMA_ARG_AIRCACHE_KEEP", "SHARE",
            "share of an image's KV cells to keep once the prompt is decoded, in (0, 1] (default: 1, keep all)" },
        { "aircache_method", "--aircache-method", "LLAMA_ARG_AIRCACHE_METHOD", "NAME",
            "how the kept cells are chosen: " + aircache::method_names() + " (default: aircache)" },
        { "aircache_alpha", "--aircache-alpha", "LLAMA_ARG_AIRCACHE_ALPHA", "A",
            "threshold of the elite window, in (0, 1] (default: the method's, 0.9)" },
        { "aircache_window", "--aircache-window", "LLAMA_ARG_AIRCACHE_WINDOW", "WINDOW",
            "tokens that rate the cells: elite[:ALPHA][:content][:last], last[:N], text[:weighted], visual[:N], all (default: the method's)" },
        { "aircache_allocation", "--aircache-allocation", "LLAMA_ARG_AIRCACHE_ALLOCATION", "NAME",
            "how layers share the kept cells: " + aircache::allocation_names() + " (default: the method's)" },
        { "aircache_request_fields", "--aircache-request-fields", "LLAMA_ARG_AIRCACHE_REQUEST_FIELDS", "LIST",
            "which of keep,method,alpha,window,allocation a request may set as aircache_...: names with commas, all or none (default: all)" },
    };
    return FLAGS[i];
}
