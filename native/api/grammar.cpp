#include "api/grammar.h"

#include <algorithm>
#include <cstdint>
#include <locale>
#include <sstream>
#include <stdexcept>
#include <vector>

namespace aircache {

[[noreturn]] static void refuse(const std::string & part, const std::string & why) {
    throw std::invalid_argument(part + " " + why);
}

static std::string got(const std::string & text) {
    return ", got '" + shown(text) + "'";
}

std::string shown(const std::string & text) {
    std::string res = text.substr(0, 80);
    std::replace_if(res.begin(), res.end(), [](unsigned char c) { return c < 32 || c > 126; }, '?');
    return text.size() > res.size() ? res + "..." : res;
}

//
// numbers, the same in every locale
//

// no inf, nan, 0x10 or white space
static bool read_number(const std::string & text, double & value) {
    std::istringstream in(text);
    in.imbue(std::locale::classic());
    return text.find_first_not_of("+-.0123456789eE") == std::string::npos && in >> value && in.peek() == std::istringstream::traits_type::eof();
}

static std::string with_digits(double value, int digits) {
    std::ostringstream res;
    res.imbue(std::locale::classic());
    res.precision(digits);
    res << value;
    return res.str();
}

std::string number_text(double value) {
    for (int digits = 6; digits < 17; ++digits) {
        const auto res = with_digits(value, digits);
        double     back;
        if (read_number(res, back) && back == value) {
            return res;
        }
    }
    return with_digits(value, 17);
}

static double parse_number(const std::string & part, const std::string & text) {
    double res;
    if (!read_number(text, res)) {
        refuse(part, "must be a number" + got(text));
    }
    return res;
}

static double check_share(const std::string & part, double value) {
    if (!(value > 0.0 && value <= 1.0 && (float) value > 0.0f)) {
        refuse(part, "must be greater than 0 and at most 1, got " + with_digits(value, 6));
    }
    return value;
}

static double parse_between(const std::string & part, const std::string & text, double high) {
    const double res = parse_number(part, text);
    if (!(res >= 0 && res <= high)) {
        refuse(part, "must be at least 0 and at most " + with_digits(high, 7) + got(text));
    }
    return res;
}

static bool read_whole(const std::string & text, int64_t & value) {
    const bool digits = !text.empty() && text.size() < 12 && text.find_first_not_of("0123456789") == std::string::npos;
    value = digits ? std::stoll(text) : -1;
    return digits;
}

static int64_t parse_whole(const std::string & part, const std::string & text, int64_t low, int64_t high) {
    int64_t res;
    if (!read_whole(text, res) || res < low || res > high) {
        refuse(part, "must be a whole number from " + std::to_string(low) + " to " + std::to_string(high) + got(text));
    }
    return res;
}

//
// words, at the places of their codes
//

using words = std::vector<std::string>;

static const words ALLOCATIONS = { "strength+skewness", "uniform", "pyramid", "strength", "skewness", "prefix", "vl" };
static const words SCORES      = { "attention", "random", "stride" };
static const words KEYS        = { "window", "causal" };
static const words SWITCH      = { "off", "on" };
static const words POOLS       = { "none", "avg", "max" };

static std::string joined(const words & list) {
    std::string res;
    for (const auto & word : list) {
        res += (res.empty() ? "" : ", ") + word;
    }
    return res;
}

static int32_t parse_word(const std::string & part, const std::string & text, const words & list) {
    const auto it = std::find(list.begin(), list.end(), text);
    if (it == list.end()) {
        refuse(part, "must be one of " + joined(list) + got(text));
    }
    return it - list.begin();
}

static std::string word_of(const std::string & part, int32_t code, const words & list) {
    if (code < 0 || code >= (int32_t) list.size()) {
        refuse(part, "has no code " + std::to_string(code));
    }
    return list[code];
}

static std::string method_names() {
    words res;
    for (int32_t i = 0; const char * name = llama_aircache_method_name(i); ++i) {
        res.push_back(name);
    }
    return joined(res);
}

//
// windows and pools
//

static words split(const std::string & text, char by) {
    words res;
    size_t from = 0;
    for (size_t to; (to = text.find(by, from)) != std::string::npos; from = to + 1) {
        res.push_back(text.substr(from, to - from));
    }
    res.push_back(text.substr(from));
    return res;
}

static int32_t window_size(const std::string & text) {
    int64_t res;
    if (text.size() > 8 || !read_whole(text, res) || res < 1 || res > 65536) {
        refuse("window", "must observe a whole number of tokens from 1 to 65536" + got(text));
    }
    return res;
}

static void set_window(llama_aircache_method & m, const std::string & text) {
    const words  given = split(text, ':');
    const auto & name  = given[0];
    const bool   sized = name == "last" || name == "visual";

    size_t used = 1;
    m.text_weights = false;
    if (name == "elite") {
        m.window        = LLAMA_AIRCACHE_WINDOW_ELITE;
        m.alpha         = llama_aircache_method_default().alpha;
        m.elite_content = false;
        m.elite_last    = false;
        for (; used < given.size(); ++used) {
            if (given[used] == "content" && !m.elite_content) {
                m.elite_content = true;
            } else if (given[used] == "last" && !m.elite_last) {
                m.elite_last = true;
            } else if (used == 1) {
                m.alpha = parse_number("window", given[used]);
                if (!(m.alpha > 0 && m.alpha <= 1)) {
                    refuse("window", "must have a threshold greater than 0 and at most 1" + got(text));
                }
            } else {
                break;
            }
        }
    } else if (sized) {
        m.window   = name == "last" ? LLAMA_AIRCACHE_WINDOW_LAST : LLAMA_AIRCACHE_WINDOW_VISUAL;
        m.window_n = given.size() > 1 ? window_size(given[used++]) : 32;
    } else if (name == "text") {
        m.window       = LLAMA_AIRCACHE_WINDOW_TEXT;
        m.text_weights = given.size() > 1 && given[1] == "weighted";
        used += m.text_weights;
    } else if (name == "all") {
        m.window = LLAMA_AIRCACHE_WINDOW_ALL;
    } else {
        used = 0;
    }
    if (used != given.size()) {
        refuse("window", "must be elite[:ALPHA][:content][:last], last[:N], text[:weighted], visual[:N] or all" + got(text));
    }
}

static std::string get_window(const llama_aircache_method & m) {
    switch (m.window) {
        case LLAMA_AIRCACHE_WINDOW_ELITE:  return "elite:" + number_text(m.alpha) + (m.elite_content ? ":content" : "") + (m.elite_last ? ":last" : "");
        case LLAMA_AIRCACHE_WINDOW_LAST:   return "last:" + std::to_string(m.window_n);
        case LLAMA_AIRCACHE_WINDOW_TEXT:   return m.text_weights ? "text:weighted" : "text";
        case LLAMA_AIRCACHE_WINDOW_VISUAL: return "visual:" + std::to_string(m.window_n);
        case LLAMA_AIRCACHE_WINDOW_ALL:    return "all";
        default: refuse("window", "has no code " + std::to_string(m.window));
    }
}

static void set_pool(llama_aircache_method & m, const std::string & text) {
    if (text == "none") {
        m.pool    = LLAMA_AIRCACHE_POOL_NONE;
        m.pool_2d = false;
        return;
    }
    const auto parts = split(text, ':');
    const auto sizes = split(parts.back(), 'x');
    const auto kind  = std::find(POOLS.begin() + 1, POOLS.end(), parts[0]);
    int64_t n;
    if (parts.size() != 2 || kind == POOLS.end() || sizes.size() > 2 || sizes.front() != sizes.back() || !read_whole(sizes[0], n)) {
        refuse("pool", "must be of the form max:N, avg:N, max:NxN, avg:NxN (on the grid) or none" + got(text));
    }
    if (n < 1 || n > 65535 || n % 2 == 0) {
        refuse("pool", "must have an odd size from 1 to 65535" + got(text));
    }
    m.pool      = kind - POOLS.begin();
    m.pool_size = n;
    m.pool_2d   = sizes.size() == 2;
}

static std::string get_pool(const llama_aircache_method & m) {
    const auto kind = word_of("pool", m.pool, POOLS);
    const auto size = std::to_string(m.pool_size);
    return m.pool == LLAMA_AIRCACHE_POOL_NONE ? kind : kind + ":" + size + (m.pool_2d ? "x" + size : "");
}

//
// parts
//

static void set_method(llama_aircache_method & m, const std::string & text) {
    const double keep = m.keep;
    // a request's text may hold NUL, where a C string would end
    if (text.find('\0') != std::string::npos || llama_aircache_method_by_name(text.c_str(), &m) != LLAMA_AIRCACHE_OK) {
        refuse("method", "must be one of " + method_names() + got(text));
    }
    m.keep = keep;
}

using method = llama_aircache_method;

// no captures: a part is what it is, and two functions
struct part {
    part_info    info;
    void       (*set)(method & m, const std::string & text);
    std::string (*get)(const method & m);
};

static const std::vector<part> & parts() {
    using k = part_kind;
    static const std::vector<part> PARTS = {
        { { "method", k::words, "NAME", "how the kept cells are chosen: " + method_names() },
            set_method, nullptr },
        { { "keep", k::number, "SHARE", "share of an image's KV cells to keep, in (0, 1]" },
            [](method & m, const std::string & t) { m.keep = check_share("keep", parse_number("keep", t)); },
            [](const method & m) { return number_text(m.keep); } },
        { { "score", k::words, "NAME", "what rates the cells: " + joined(SCORES) },
            [](method & m, const std::string & t) { m.score = parse_word("score", t, SCORES); },
            [](const method & m) { return word_of("score", m.score, SCORES); } },
        { { "window", k::words, "WINDOW", "tokens that rate the cells: elite[:ALPHA][:content][:last], last[:N], text[:weighted], visual[:N], all" },
            set_window, get_window },
        { { "alpha", k::number, "SHARE", "threshold of the elite window, in (0, 1]" },
            [](method & m, const std::string & t) {
                const double alpha = check_share("alpha", parse_number("alpha", t));
                if (m.window != LLAMA_AIRCACHE_WINDOW_ELITE || m.score != LLAMA_AIRCACHE_SCORE_ATTENTION) {
                    refuse("alpha", "is the threshold of elite windows, and this method has none" + got(t));
                }
                m.alpha = alpha;
            },
            [](const method & m) { return number_text(m.alpha); } },
        { { "keys", k::words, "NAME", "soft-max over the visual tokens and the window, or all that an observer sees: " + joined(KEYS) },
            [](method & m, const std::string & t) { m.keys = parse_word("keys", t, KEYS); },
            [](const method & m) { return word_of("keys", m.keys, KEYS); } },
        { { "pool", k::words, "POOL", "pooling of the ratings over neighbours: max:N, avg:N, max:NxN, avg:NxN (on the grid), none; N odd" },
            set_pool, get_pool },
        { { "last_term", k::number, "WEIGHT", "weight of what the last token attends to besides, in [0, 1000000]" },
            [](method & m, const std::string & t) { m.last_term = parse_between("last_term", t, 1e6); },
            [](const method & m) { return number_text(m.last_term); } },
        { { "value_norm", k::on_off, "ON|OFF", "ratings times the lengths of the tokens' values: on, off" },
            [](method & m, const std::string & t) { m.value_norm = parse_word("value_norm", t, SWITCH); },
            [](const method & m) { return word_of("value_norm", m.value_norm, SWITCH); } },
        { { "diversity", k::on_off, "ON|OFF", "prefer tokens whose keys are unlike the others': on, off" },
            [](method & m, const std::string & t) { m.diversity = parse_word("diversity", t, SWITCH); },
            [](const method & m) { return word_of("diversity", m.diversity, SWITCH); } },
        { { "allocation", k::words, "NAME", "how layers share the kept cells: " + joined(ALLOCATIONS) },
            [](method & m, const std::string & t) { m.allocation = parse_word("allocation", t, ALLOCATIONS); },
            [](const method & m) { return word_of("allocation", m.allocation, ALLOCATIONS); } },
        { { "uniform_share", k::number, "SHARE", "share of the kept cells that all layers get alike, in [0, 1]" },
            [](method & m, const std::string & t) { m.uniform_share = parse_between("uniform_share", t, 1); },
            [](const method & m) { return number_text(m.uniform_share); } },
        { { "min_keep", k::whole, "N", "visual tokens that every layer keeps at least" },
            [](method & m, const std::string & t) { m.min_keep = parse_whole("min_keep", t, 1, INT32_MAX); },
            [](const method & m) { return std::to_string(m.min_keep); } },
        { { "rank", k::whole, "N", "keep only the N-th best token of every layer; 0: off" },
            [](method & m, const std::string & t) { m.rank = parse_whole("rank", t, 0, INT32_MAX); },
            [](const method & m) { return std::to_string(m.rank); } },
        { { "merge", k::number, "SHARE", "share of the dropped tokens that is averaged into kept ones, in [0, 1]" },
            [](method & m, const std::string & t) { m.merge = parse_between("merge", t, 1); },
            [](const method & m) { return number_text(m.merge); } },
        { { "seed", k::whole, "N", "of random ratings" },
            [](method & m, const std::string & t) { m.seed = parse_whole("seed", t, 0, UINT32_MAX); },
            [](const method & m) { return std::to_string(m.seed); } },
    };
    return PARTS;
}

static const part & find_part(const std::string & name) {
    std::string known;
    for (const auto & p : parts()) {
        if (name == p.info.name) {
            return p;
        }
        known += (known.empty() ? "" : ", ") + p.info.name;
    }
    throw std::invalid_argument("a method has no part '" + shown(name) + "', its parts are " + known);
}

const std::vector<part_info> & method_parts() {
    static const std::vector<part_info> res = [] {
        std::vector<part_info> infos;
        for (const auto & p : parts()) {
            infos.push_back(p.info);
        }
        return infos;
    }();
    return res;
}

void method_set(llama_aircache_method & method, const std::string & part, const std::string & text) {
    llama_aircache_method res = method;
    find_part(part).set(res, text);
    if (res.allocation == LLAMA_AIRCACHE_ALLOC_PREFIX && res.uniform_share > 0) {
        refuse(part, "does not fit: uniform_share must be 0 with allocation 'prefix', it is " + number_text(res.uniform_share));
    }
    method = res;
}

// all parts but keep
static bool same(const llama_aircache_method & a, const llama_aircache_method & b) {
    return std::all_of(parts().begin(), parts().end(), [&](const part & p) {
        return !p.get || p.info.name == "keep" || p.get(a) == p.get(b);
    });
}

std::string method_get(const llama_aircache_method & method, const std::string & part) {
    if (const auto & p = find_part(part); p.get) {
        return p.get(method);
    }
    for (int32_t i = 0; const char * name = llama_aircache_method_name(i); ++i) {
        auto known = llama_aircache_method_default();
        if (llama_aircache_method_by_name(name, &known) == LLAMA_AIRCACHE_OK && same(method, known)) {
            return name;
        }
    }
    return "";
}

} // namespace aircache
