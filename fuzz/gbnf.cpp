// Grammars and JSON schemas as requests bring them: taken or refused with a message; what is taken can be followed, token
// by token, until it ends or says why not. None takes long: libFuzzer's own limit of time tells.
//
// Input: grammar or schema (1 byte), which of the tokens that fit come next (16 bytes), the text.
#include "fuzz.h"

#include "common/grammar-limits.h"
#include "json-schema-to-grammar.h"
#include "json.h"
#include "llama-cpp.h"

#include <cmath>
#include <cstring>
#include <exception>
#include <string>

static constexpr int N_FOLLOWED = 16;

static void check_message(const std::string & message) {
    REQUIRE(message.size() > 8 && message.size() < 1000, "message \"%.200s\", %zu bytes", message.c_str(), message.size());
}

// empty: refused
static std::string grammar_of(const std::string & schema) {
    const auto json = common_json::parse_no_throw(schema);
    if (json.is_discarded()) {
        return "";
    }
    try {
        return json_schema_to_grammar(json, /*force_gbnf =*/ true);
    } catch (const std::exception & e) { // it may quote the schema
        REQUIRE(strlen(e.what()) > 8 && strlen(e.what()) < 1000 + 2*schema.size(), "message \"%.200s\"", e.what());
        return "";
    }
}

static void follow(llama_sampler * grammar, const llama_vocab * vocab, const uint8_t * choices) {
    for (int i = 0; i < N_FOLLOWED; ++i) {
        std::vector<llama_token_data> tokens;
        for (int32_t t = 0; t < llama_vocab_n_tokens(vocab); ++t) {
            tokens.push_back({ t, 0.0f, 0.0f });
        }
        llama_token_data_array array = { tokens.data(), tokens.size(), -1, false };
        try {
            llama_sampler_apply(grammar, &array);
            std::vector<llama_token> fit;
            for (const auto & t : tokens) {
                if (t.logit != -INFINITY) {
                    fit.push_back(t.id);
                }
            }
            REQUIRE(!fit.empty(), "no token fits, and nothing was said");
            const llama_token token = fit[choices[i] % fit.size()];
            llama_sampler_accept(grammar, token);
            if (llama_vocab_is_eog(vocab, token)) {
                return;
            }
        } catch (const std::runtime_error & e) {
            return check_message(e.what());
        }
    }
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    fuzz_input in = { data, size };
    const bool is_schema = in.byte() & 1;
    uint8_t choices[N_FOLLOWED];
    for (auto & c : choices) {
        c = in.byte();
    }
    std::string text((const char *) in.data, in.size);
    text = text.substr(0, text.find('\0'));

    static const llama_vocab * vocab = llama_model_get_vocab(fuzz_model());
    if (is_schema && (text = grammar_of(text)).empty()) {
        return 0;
    }
    const llama_sampler_ptr grammar(text.empty() ? nullptr : llama_sampler_init_grammar(vocab, text.c_str(), "root"));
    if (grammar) {
        follow(grammar.get(), vocab, choices);
    } else if (!text.empty()) {
        check_message(aircache_grammar_reason());
    }
    return 0;
}
