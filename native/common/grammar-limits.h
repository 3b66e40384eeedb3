// Grammars come from whoever asks: one that is nested without end, repeats without end or is ambiguous in many ways must
// fail with an error. patches/0007 calls this where llama.cpp parses grammars, follows them, and makes them of JSON schemas.
#pragma once

#include "llama.h"

#include <cstdint>
#include <stdexcept>

// Counts the work of this thread while it lives, from 0, and ends it with a std::runtime_error when it is too much: about a
// second, or 200 MB. Outside of one nothing is counted: those who follow grammars without catching errors, as llama-server
// does with those it has parsed, go on as ever. Parsing always is inside of one.
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

// Lives while a group is parsed, a rule looked into or a schema visited; they nest. weight: how much of the stack a level takes.
class LLAMA_API aircache_grammar_step {
public:
    static constexpr int GROUP  = 16;
    static constexpr int RULE   = 1;
    static constexpr int SCHEMA = 8; // of a JSON schema: 400 levels, and 25,000 visits

    explicit aircache_grammar_step(int weight);
    ~aircache_grammar_step();

    aircache_grammar_step(const aircache_grammar_step &) = delete;
    aircache_grammar_step & operator=(const aircache_grammar_step &) = delete;

private:
    int weight;
};
