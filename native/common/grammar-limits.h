// Grammars come from whoever asks: one that is nested without end, repeats without end or is ambiguous in many ways must
// fail with an error that says why. patches/0007 calls this where llama.cpp parses grammars and follows them.
#pragma once

#include "llama.h"

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>

// Counts the work of this thread while it lives, from 0, and ends it with a std::runtime_error when it is too much: about a
// second, or 200 MB. Lives while a JSON schema is read, while a grammar is parsed, while it is applied to the tokens that may
// come next, and while it takes in the one that did. Outside of one nothing is counted.
class LLAMA_API aircache_grammar_limit {
public:
    aircache_grammar_limit();
    ~aircache_grammar_limit();

    aircache_grammar_limit(const aircache_grammar_limit &) = delete;
    aircache_grammar_limit & operator=(const aircache_grammar_limit &) = delete;

private:
    uint64_t before;
};

// n: some 10 ns or 8 bytes each
LLAMA_API void aircache_grammar_spend(uint64_t n);

// Lives while a group is parsed, a rule looked into or a JSON schema visited; they nest. weight: how much of the stack a level
// takes.
class LLAMA_API aircache_grammar_step {
public:
    static constexpr int GROUP  = 16;
    static constexpr int RULE   = 1;
    static constexpr int SCHEMA = 8; // 400 levels, and 25,000 visits

    explicit aircache_grammar_step(int weight);
    ~aircache_grammar_step();

    aircache_grammar_step(const aircache_grammar_step &) = delete;
    aircache_grammar_step & operator=(const aircache_grammar_step &) = delete;

private:
    int weight;
};

// Throws a std::runtime_error when a grammar has left none of the tokens that it was applied to: llama.cpp's samplers would
// draw one anyway. One token alone is a question whether it fits.
LLAMA_API void aircache_grammar_left(const struct llama_token_data_array * tokens);

// std::regex recurses over the terms of an expression and over the text that it matches. A lazy grammar's trigger that is too
// long for that throws a std::runtime_error; one that stands for all of an answer no longer comes once the answer is too long.
LLAMA_API void aircache_grammar_check_trigger(const std::string & pattern);
LLAMA_API bool aircache_grammar_may_trigger(const std::string & text);

// Where to look for one that may be anywhere: what is before has been looked through when it came.
LLAMA_API size_t aircache_grammar_trigger_from(const std::string & text);

//
// why a grammar is not taken
//

// of a rule's number, for messages
LLAMA_API std::string aircache_grammar_rule_name(const std::map<std::string, uint32_t> & names, uint32_t id);

// Logs it as an error and keeps it. text: the grammar, when `why` ends in what is left of it: its place is named instead.
LLAMA_API void aircache_grammar_refuse(const char * why, const char * text = "");

// of the last grammar that this thread has parsed
LLAMA_API std::string aircache_grammar_reason();

LLAMA_API void aircache_grammar_warn(const std::string & what);
