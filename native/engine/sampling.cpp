#include "sampling.h"

#include "common/grammar-limits.h"

#include <algorithm>
#include <cmath>
#include <numeric>

static constexpr size_t MAX_GRAMMAR = 1 << 16; // bytes

const pac_sampling PAC_SAMPLING_DEFAULT = [] {
    pac_sampling res = {};
    res.size           = sizeof(res);
    res.top_p          = 1.0f;
    res.repeat_penalty = 1.0f;
    res.repeat_last_n  = 64;
    return res;
}();

//
// parameters
//

static void check_number(const char * name, double value, double lo, double hi) {
    if (!(value >= lo && value <= hi)) {
        throw pac_error(PAC_ERR_ARGUMENT, pac_format("%s is %g: it must be in [%g, %g]", name, value, lo, hi));
    }
}

static void check_numbers(const pac_sampling & p) {
    if (!(p.temperature >= 0.0f && std::isfinite(p.temperature))) {
        throw pac_error(PAC_ERR_ARGUMENT, pac_format("temperature is %g: it must be finite and not negative", p.temperature));
    }
    if (!(p.top_p > 0.0f && p.top_p <= 1.0f)) {
        throw pac_error(PAC_ERR_ARGUMENT, pac_format("top_p is %g: it must be in (0, 1]", p.top_p));
    }
    pac_check_range("top_k",         p.top_k,          0, INT32_MAX);
    pac_check_range("repeat_last_n", p.repeat_last_n, -1, INT32_MAX);
    check_number("min_p",          p.min_p,          0.0,  1.0);
    check_number("repeat_penalty", p.repeat_penalty, 0.01, 100.0);
}

static void check_text(const char * name, const char * text) {
    if (strnlen(text, MAX_GRAMMAR + 1) > MAX_GRAMMAR) {
        throw pac_error(PAC_ERR_ARGUMENT, pac_format("the %s has more than %zu bytes", name, MAX_GRAMMAR));
    }
}

static llama_sampler_ptr parse_grammar(const llama_vocab * vocab, const std::string & text) {
    llama_sampler_ptr res(llama_sampler_init_grammar(vocab, text.c_str(), "root"));
    if (!res) {
        throw pac_error(PAC_ERR_ARGUMENT, "the grammar cannot be used: " + pac_shorten(aircache_grammar_reason(), 240));
    }
    return res;
}

void pac_sampler::set(const pac_sampling & wanted) {
    check_numbers(wanted);

    std::string text;
    const bool has_grammar = wanted.grammar     && *wanted.grammar;
    const bool has_schema  = wanted.json_schema && *wanted.json_schema;
    if (has_grammar && has_schema) {
        throw pac_error(PAC_ERR_ARGUMENT, "grammar and json_schema cannot both be given");
    }
    if (has_grammar) {
        check_text("grammar", wanted.grammar);
        text = wanted.grammar;
    } else if (has_schema) {
        check_text("JSON schema", wanted.json_schema);
        text = pac_schema_to_grammar(wanted.json_schema);
    }
    if (!text.empty()) {
        parse_grammar(vocab, text);
    }

    grammar_text = std::move(text);
    params  = wanted;
    params.grammar     = nullptr; // the caller's
    params.json_schema = nullptr;
    started = false;
}

//
// the course of an answer
//

void pac_sampler::begin_answer(const std::vector<int32_t> & tokens) {
    std::copy_if(tokens.begin(), tokens.end(), std::back_inserter(history), [](int32_t t) { return t >= 0; });
    started = false;
}

void pac_sampler::clear() {
    history.clear();
    started = false;
}

void pac_sampler::start() {
    if (started) {
        return;
    }
    penalties.reset();
    grammar.reset();
    chain.reset();

    if (penalises()) {
        const int32_t last_n = params.repeat_last_n < 0 ? n_ctx : std::min(params.repeat_last_n, n_ctx);
        penalties.reset(llama_sampler_init_penalties(llama_vocab_n_tokens(vocab), last_n, params.repeat_penalty, 0.0f, 0.0f));
        for (size_t i = history.size() - std::min<size_t>(history.size(), last_n); i < history.size(); ++i) {
            llama_sampler_accept(penalties.get(), history[i]);
        }
    }
    if (!grammar_text.empty()) {
        grammar = parse_grammar(vocab, grammar_text);
    }
    if (params.temperature > 0.0f) {
        chain.reset(llama_sampler_chain_init(llama_sampler_chain_default_params()));
        const auto add = [&](llama_sampler * sampler) { llama_sampler_chain_add(chain.get(), sampler); };
        if (params.top_k > 0) {
            add(llama_sampler_init_top_k(params.top_k));
        }
        if (params.top_p < 1.0f) {
            add(llama_sampler_init_top_p(params.top_p, 1));
        }
        if (params.min_p > 0.0f) {
            add(llama_sampler_init_min_p(params.min_p, 1));
        }
        add(llama_sampler_init_temp(params.temperature));
        add(llama_sampler_init_dist(params.seed));
    }
    started = true;
}

void pac_sampler::check(int32_t token) {
    if (grammar_text.empty()) {
        return;
    }
    start();
    if (!fits(token)) {
        throw pac_error(PAC_ERR_ARGUMENT, pac_format("token %d does not fit the grammar of pac_sampling_set", token));
    }
}

void pac_sampler::accept(int32_t token) {
    history.reserve(history.size() + 1);
    if (started && grammar) {
        try {
            llama_sampler_accept(grammar.get(), token);
        } catch (const std::runtime_error & e) {
            throw pac_error(PAC_ERR_COMPUTE, e.what());
        }
    }
    if (started && penalties) {
        llama_sampler_accept(penalties.get(), token);
    }
    history.push_back(token);
}

//
// drawing
//

bool pac_sampler::fits(int32_t token) const {
    llama_token_data       one = { token, 1.0f, 0.0f };
    llama_token_data_array arr = { &one, 1, -1, false };

    try {
        llama_sampler_apply(grammar.get(), &arr);
    } catch (const std::runtime_error & e) {
        throw pac_error(PAC_ERR_COMPUTE, e.what());
    }
    return one.logit != -INFINITY;
}

void pac_sampler::list_candidates(const float * logits) {
    const int32_t n_vocab = llama_vocab_n_tokens(vocab);
    candidates.resize(n_vocab);
    for (int32_t i = 0; i < n_vocab; ++i) {
        candidates[i] = { i, logits[i], 0.0f };
    }
    array = { candidates.data(), candidates.size(), -1, false };
    llama_sampler_apply(penalties.get(), &array);
}

void pac_sampler::apply_grammar() {
    try {
        llama_sampler_apply(grammar.get(), &array);
    } catch (const std::runtime_error & e) {
        throw pac_error(PAC_ERR_COMPUTE, e.what());
    }
    const auto end = std::remove_if(array.data, array.data + array.size, [](const llama_token_data & c) { return c.logit == -INFINITY; });
    array.size = end - array.data;
}

int32_t pac_sampler::draw() {
    const auto best = std::max_element(array.data, array.data + array.size, [](const auto & a, const auto & b) { return a.logit < b.logit; });
    // a temperature so small that logits overflow: the limit is the most likely token
    if (!chain || !std::isfinite(best->logit/params.temperature)) {
        return best->id;
    }
    llama_sampler_apply(chain.get(), &array);
    return array.data[array.selected].id;
}

int32_t pac_sampler::sample(const float * logits) {
    const int32_t n_vocab = llama_vocab_n_tokens(vocab);
    const int32_t best    = std::max_element(logits, logits + n_vocab) - logits;

    // llama.cpp's samplers end the process over these
    if (!std::isfinite(logits[best]) || std::any_of(logits, logits + n_vocab, [](float x) { return std::isnan(x); })) {
        throw pac_error(PAC_ERR_COMPUTE, "the model's logits are no numbers: its weights are damaged, or the cache type is too narrow for it");
    }
    if (greedy()) {
        return best;
    }

    start();
    list_candidates(logits);
    const int32_t token = draw();
    if (!grammar || fits(token)) {
        return token;
    }
    // the grammar costs a lot for a whole vocabulary, and most tokens that are drawn fit it anyway
    list_candidates(logits);
    apply_grammar();
    return draw();
}

void pac_rank_tokens(const float * logits, int32_t n_vocab, int32_t n, int32_t * ids, double * values, int32_t token, double * value) {
    const double best = *std::max_element(logits, logits + n_vocab);
    double sum = 0.0;
    for (int32_t i = 0; i < n_vocab; ++i) {
        sum += std::exp(logits[i] - best);
    }
    if (!std::isfinite(sum)) {
        throw pac_error(PAC_ERR_COMPUTE, "the model's logits are no numbers: its weights are damaged, or the cache type is too narrow for it");
    }
    const double norm = best + std::log(sum);

    if (n > 0) {
        std::vector<int32_t> order(n_vocab);
        std::iota(order.begin(), order.end(), 0);
        const auto before = [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
        std::nth_element(order.begin(), order.begin() + (n - 1), order.end(), before);
        std::sort(order.begin(), order.begin() + n, before);
        for (int32_t i = 0; i < n; ++i) {
            ids   [i] = order[i];
            values[i] = logits[order[i]] - norm;
        }
    }
    if (value) {
        *value = logits[token] - norm;
    }
}
