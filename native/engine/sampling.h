// How the tokens of an answer are drawn: what pac_sampling asks for, by llama.cpp's samplers.
#pragma once

#include "border.h"

#include "llama-cpp.h"

#include <string>
#include <vector>

extern const pac_sampling PAC_SAMPLING_DEFAULT;

// GBNF of a JSON schema. Throws pac_error.
std::string pac_schema_to_grammar(const char * schema);

class pac_sampler {
public:
    pac_sampler(const llama_vocab * vocab, int32_t n_ctx) : vocab(vocab), n_ctx(n_ctx) {}

    void set(const pac_sampling & wanted); // throws, with all as it was

    // the texts of a conversation, for the repeat penalty; tokens: -1 where they are visual
    void begin_answer(const std::vector<int32_t> & tokens);
    void clear();

    int32_t sample(const float * logits);

    void check (int32_t token); // throws when it does not fit the grammar
    void accept(int32_t token); // it is a part of the answer; throws, with all as it was

private:
    bool greedy()    const { return params.temperature == 0.0f && !penalises() && grammar_text.empty(); }
    bool penalises() const { return params.repeat_penalty != 1.0f && params.repeat_last_n != 0; }

    void start(); // anew, when an answer begins
    bool fits(int32_t token) const;
    void list_candidates(const float * logits); // all tokens, penalties applied
    void apply_grammar(); // leaves only those that fit
    int32_t draw();

    const llama_vocab * vocab;
    const int32_t n_ctx;

    pac_sampling params = PAC_SAMPLING_DEFAULT;
    std::string  grammar_text;

    std::vector<llama_token> history; // text tokens of the conversation

    bool started = false;
    llama_sampler_ptr penalties; // each of these may be null: not wanted
    llama_sampler_ptr grammar;
    llama_sampler_ptr chain;

    std::vector<llama_token_data> candidates;
    llama_token_data_array        array = {};
};

// natural-log probabilities; see pac_logprobs
void pac_rank_tokens(const float * logits, int32_t n_vocab, int32_t n, int32_t * ids, double * values, int32_t token, double * value);
