#include "aircache-params.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <tuple>
#include <vector>

static const struct { const char * name; llama_aircache_allocation value; } ALLOCATIONS[] = {
    { "strength+skewness", LLAMA_AIRCACHE_ALLOC_AIRCACHE },
    { "uniform",           LLAMA_AIRCACHE_ALLOC_UNIFORM  },
    { "pyramid",           LLAMA_AIRCACHE_ALLOC_PYRAMID  },
    { "strength",          LLAMA_AIRCACHE_ALLOC_STRENGTH },
    { "skewness",          LLAMA_AIRCACHE_ALLOC_SKEWNESS },
    { "prefix",            LLAMA_AIRCACHE_ALLOC_PREFIX   },
    { "vl",                LLAMA_AIRCACHE_ALLOC_VL       },
};

[[noreturn]] static void refuse(const char * field, const std::string & why) {
    throw std::invalid_argument(std::string(field) + " " + why);
}

std::string common_aircache_shown(const std::string & text) {
    std::string res = text.substr(0, 80);
    std::replace_if(res.begin(), res.end(), [](unsigned char c) { return c < 32 || c > 126; }, '?');
    return text.size() > res.size() ? res + "..." : res;
}

static std::string to_text(double value) {
    std::ostringstream res;
    res << value;
    return res.str();
}

// 0.1 for 0.1f, as the Python package hands it over: budgets are to be the same
static double decimal(float value) {
    return std::stod(to_text(value));
}

static float share(const char * field, double value) {
    if (!(value > 0.0 && value <= 1.0 && (float) value > 0.0f)) {
        refuse(field, "must be greater than 0 and at most 1, got " + to_text(value));
    }
    return value;
}

static double number(const char * field, const std::string & text) {
    try {
        size_t n;
        const double res = std::stod(text, &n);
        const char * digits = "+-.0123456789eE"; // no inf, nan, 0x10 or white space
        if (n == text.size() && text.find_first_not_of(digits) == std::string::npos) {
            return res;
        }
    } catch (const std::exception &) {
    }
    refuse(field, "must be a number, got '" + common_aircache_shown(text) + "'");
}

std::string common_aircache_methods() {
    std::string res;
    for (int32_t i = 0; const char * name = llama_aircache_method_name(i); ++i) {
        res += (i > 0 ? ", " : "") + std::string(name);
    }
    return res;
}

//
// windows: the texts that the Python package reads, too
//

static int32_t window_size(const std::string & text) {
    const bool digits = !text.empty() && text.size() < 9 && text.find_first_not_of("0123456789") == std::string::npos;
    const int  res    = digits ? std::stoi(text) : 0;
    if (res < 1 || res > 65536) {
        refuse("aircache_window", "must observe a whole number of tokens from 1 to 65536, got '" + common_aircache_shown(text) + "'");
    }
    return res;
}

static void parse_window(const std::string & text, llama_aircache_method & m) {
    std::vector<std::string> words;
    std::istringstream in(text);
    for (std::string word; std::getline(in, word, ':'); ) {
        words.push_back(word);
    }

    const std::string name = words.empty() ? "" : words[0];
    size_t used = 1;
    if (name == "elite") {
        m.window        = LLAMA_AIRCACHE_WINDOW_ELITE;
        m.elite_content = false;
        m.elite_last    = false;
        for (; used < words.size(); ++used) {
            if (words[used] == "content" && !m.elite_content) {
                m.elite_content = true;
            } else if (words[used] == "last" && !m.elite_last) {
                m.elite_last = true;
            } else if (used == 1) { // the very number that Python reads, not rounded as those of flags are
                m.alpha = number("aircache_window", words[used]);
                if (!(m.alpha > 0 && m.alpha <= 1)) {
                    refuse("aircache_window", "must have a threshold greater than 0 and at most 1");
                }
            } else {
                break;
            }
        }
    } else if (name == "last" || name == "visual") {
        m.window   = name == "last" ? LLAMA_AIRCACHE_WINDOW_LAST : LLAMA_AIRCACHE_WINDOW_VISUAL;
        m.window_n = words.size() > 1 ? window_size(words[used++]) : 32;
    } else if (name == "text") {
        m.window       = LLAMA_AIRCACHE_WINDOW_TEXT;
        m.text_weights = words.size() > 1 && words[1] == "weighted";
        used += m.text_weights;
    } else if (name == "all") {
        m.window = LLAMA_AIRCACHE_WINDOW_ALL;
    } else {
        used = 0;
    }
    if (used == 0 || used != words.size() || text.back() == ':') {
        refuse("aircache_window", "must be elite[:ALPHA][:content][:last], last[:N], text[:weighted], visual[:N] or all, got '" + common_aircache_shown(text) + "'");
    }
}

std::string common_params_aircache::window_name() const {
    const auto m = resolve();
    switch (m.window) {
        case LLAMA_AIRCACHE_WINDOW_ELITE:  return "elite:" + to_text(m.alpha) + (m.elite_content ? ":content" : "") + (m.elite_last ? ":last" : "");
        case LLAMA_AIRCACHE_WINDOW_LAST:   return "last:" + std::to_string(m.window_n);
        case LLAMA_AIRCACHE_WINDOW_TEXT:   return m.text_weights ? "text:weighted" : "text";
        case LLAMA_AIRCACHE_WINDOW_VISUAL: return "visual:" + std::to_string(m.window_n);
        default:                           return "all";
    }
}

std::string common_params_aircache::allocation_name() const {
    const auto m = resolve();
    for (const auto & a : ALLOCATIONS) {
        if (a.value == m.allocation) {
            return a.name;
        }
    }
    return "";
}

//
// fields
//

void common_params_aircache::set_keep(double value) {
    keep = share("aircache_keep", value);
}

void common_params_aircache::set_alpha(double value) {
    alpha = share("aircache_alpha", value);
}

void common_params_aircache::set_method(const std::string & value) {
    llama_aircache_method m;
    if (llama_aircache_method_by_name(value.c_str(), &m) != LLAMA_AIRCACHE_OK) {
        refuse("aircache_method", "must be one of " + common_aircache_methods() + ", got '" + common_aircache_shown(value) + "'");
    }
    method = value;
}

void common_params_aircache::set_window(const std::string & value) {
    llama_aircache_method m = {};
    parse_window(value, m);
    window = value;
}

void common_params_aircache::set_allocation(const std::string & value) {
    std::string known;
    for (const auto & a : ALLOCATIONS) {
        if (value == a.name) {
            allocation = value;
            return;
        }
        known += (known.empty() ? "" : ", ") + std::string(a.name);
    }
    refuse("aircache_allocation", "must be one of " + known + ", got '" + common_aircache_shown(value) + "'");
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
    if      (field == "aircache_keep")       { set_keep(number(field.c_str(), value)); }
    else if (field == "aircache_alpha")      { set_alpha(number(field.c_str(), value)); }
    else if (field == "aircache_method")     { set_method(value); }
    else if (field == "aircache_window")     { set_window(value); }
    else if (field == "aircache_allocation") { set_allocation(value); }
    else if (field == "aircache_request_fields") { set_request_fields(value); }
    else                                     { refuse(field.c_str(), "does not exist"); }
}

llama_aircache_method common_params_aircache::resolve() const {
    llama_aircache_method m = llama_aircache_method_default();
    llama_aircache_method_by_name(method.c_str(), &m);
    m.keep = decimal(keep);
    if (!window.empty()) {
        parse_window(window, m);
    }
    for (const auto & a : ALLOCATIONS) {
        if (allocation == a.name) {
            m.allocation = a.value;
        }
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
            "how the kept cells are chosen: " + common_aircache_methods() + " (default: aircache)" },
        { "aircache_alpha", "--aircache-alpha", "LLAMA_ARG_AIRCACHE_ALPHA", "A",
            "threshold of the elite window, in (0, 1] (default: the method's, 0.9)" },
        { "aircache_window", "--aircache-window", "LLAMA_ARG_AIRCACHE_WINDOW", "WINDOW",
            "tokens that rate the cells: elite[:ALPHA][:content][:last], last[:N], text[:weighted], visual[:N], all (default: the method's)" },
        { "aircache_allocation", "--aircache-allocation", "LLAMA_ARG_AIRCACHE_ALLOCATION", "NAME",
            "how layers share the kept cells: strength+skewness, uniform, pyramid, strength, skewness, prefix, vl (default: the method's)" },
        { "aircache_request_fields", "--aircache-request-fields", "LLAMA_ARG_AIRCACHE_REQUEST_FIELDS", "LIST",
            "which of keep,method,alpha,window,allocation a request may set as aircache_...: names with commas, all or none (default: all)" },
    };
    return FLAGS[i];
}
