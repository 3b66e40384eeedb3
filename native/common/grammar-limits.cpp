#include "common/grammar-limits.h"

#include "llama-impl.h"

#include <algorithm>
#include <cmath>
#include <cstring>

static constexpr uint64_t MAX_STEPS = 50000000;
static constexpr int      MAX_DEPTH = 3200; // 200 groups within each other

static constexpr size_t MAX_TRIGGER      = 8192;  // bytes
static constexpr size_t MAX_TRIGGER_TEXT = 24576; // bytes: 8 MB of stack are full with some 45,000
static constexpr size_t MAX_TRIGGER_BACK = 4096;  // bytes: the search may take their square

static constexpr uint64_t UNLIMITED = UINT64_MAX;

static thread_local uint64_t    steps_left = UNLIMITED;
static thread_local int         depth      = 0;
static thread_local std::string reason;

aircache_grammar_limit::aircache_grammar_limit() : before(steps_left) {
    steps_left = before == UNLIMITED ? MAX_STEPS : before; // the outer one counts on
    reason.clear();
}

aircache_grammar_limit::~aircache_grammar_limit() {
    if (before == UNLIMITED) {
        steps_left = UNLIMITED;
    }
}

void aircache_grammar_spend(uint64_t n) {
    if (steps_left == UNLIMITED) {
        return;
    }
    if (n > steps_left) {
        throw std::runtime_error("the grammar takes too long: it repeats too much, or can be read in too many ways");
    }
    steps_left -= n;
}

aircache_grammar_step::aircache_grammar_step(int weight) : weight(weight) {
    if (depth + weight > MAX_DEPTH) {
        throw std::runtime_error("the grammar is nested too deeply");
    }
    aircache_grammar_spend(weight == SCHEMA ? 2000 : 1);
    depth += weight;
}

aircache_grammar_step::~aircache_grammar_step() {
    depth -= weight;
}

void aircache_grammar_left(const llama_token_data_array * tokens) {
    const auto refused = [](const llama_token_data & token) { return token.logit == -INFINITY; };
    if (tokens->size > 1 && std::all_of(tokens->data, tokens->data + tokens->size, refused)) {
        throw std::runtime_error("no token of the model's vocabulary fits the grammar at this place");
    }
}

void aircache_grammar_check_trigger(const std::string & pattern) {
    if (pattern.size() > MAX_TRIGGER) {
        throw std::runtime_error("a trigger of it has " + std::to_string(pattern.size()) + " bytes, more than " + std::to_string(MAX_TRIGGER));
    }
}

bool aircache_grammar_may_trigger(const std::string & text) {
    return text.size() <= MAX_TRIGGER_TEXT;
}

size_t aircache_grammar_trigger_from(const std::string & text) {
    return text.size() - std::min(text.size(), MAX_TRIGGER_BACK);
}

//
// why a grammar is not taken
//

// at most n bytes from the beginning, whole characters
static std::string beginning(const std::string & text, size_t n) {
    if (text.size() <= n) {
        return text;
    }
    while (n > 0 && ((uint8_t) text[n] & 0xC0) == 0x80) {
        n--;
    }
    return text.substr(0, n) + "...";
}

// The parser's messages say "expecting ... at " and all that is left of the grammar.
static std::string with_place(const std::string & why, const std::string & text) {
    static const std::string AT = " at ";

    const size_t at = why.find(AT);
    if (at == std::string::npos) {
        return why;
    }
    const std::string rest = why.substr(at + AT.size());
    if (rest.size() > text.size() || text.compare(text.size() - rest.size(), rest.size(), rest) != 0) {
        return why;
    }
    if (rest.empty()) {
        return why.substr(0, at) + " at the end";
    }
    const auto   end    = text.end() - rest.size();
    const size_t line   = std::count(text.begin(), end, '\n') + 1;
    const size_t before = end - text.begin();
    const size_t start  = before == 0 ? 0 : text.rfind('\n', before - 1) + 1; // npos + 1 is 0
    const size_t column = std::count_if(text.begin() + start, end, [](char c) { return ((uint8_t) c & 0xC0) != 0x80; }) + 1;

    return why.substr(0, at) + " at line " + std::to_string(line) + ", column " + std::to_string(column) +
        ", where it says: " + beginning(rest.substr(0, rest.find('\n')), 40);
}

std::string aircache_grammar_rule_name(const std::map<std::string, uint32_t> & names, uint32_t id) {
    for (const auto & [name, number] : names) {
        if (number == id) {
            return "the rule " + name;
        }
    }
    return "a rule";
}

void aircache_grammar_refuse(const char * why, const char * text) {
    const bool number = strncmp(why, "sto", 3) == 0; // std::stoull and its kind say no more than their names
    reason = number ? "a number in it is too large" : beginning(with_place(why, text), 400);
    LLAMA_LOG_ERROR("the grammar cannot be used: %s\n", reason.c_str());
}

std::string aircache_grammar_reason() {
    return reason.empty() ? "it has no rules" : reason;
}

void aircache_grammar_warn(const std::string & what) {
    LLAMA_LOG_WARN("%s\n", what.c_str());
}
