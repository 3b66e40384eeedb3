#include "aircache-server.h"

#include "server-common.h"
#include "server-task.h"

#include "aircache-mtmd.h"
#include "../common/template-tokens.h"
#include "common.h"
#include "log.h"
#include "src/llama-ext.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

static constexpr size_t EMBDS_MAX_BYTES = 256ull*1024*1024;

//
// what can be asked for
//

// Why no request can be compressed by this server, naming the option that is in the way; empty: they can.
static std::string find_refusal(const common_params & params, llama_context * ctx_tgt, const llama_context * ctx_dft) {
    if (params.kv_unified && params.n_parallel > 1) {
        return "--kv-unified with " + std::to_string(params.n_parallel) + " slots: every slot needs a stream of its own "
            "(use --no-kv-unified, or -np 1)";
    }
    if (ctx_dft && llama_get_ctx_other(const_cast<llama_context *>(ctx_dft)) == ctx_tgt) {
        return "--spec-type: this draft model works on the cells of the target model";
    }
    if (llama_aircache_supported(ctx_tgt) != LLAMA_AIRCACHE_OK) {
        return llama_aircache_error();
    }
    return "";
}

void server_aircache_init(common_params & params, llama_context * ctx_tgt, const llama_context * ctx_dft, bool has_images,
        server_aircache_metrics & metrics) {
    params.aircache_refused = has_images ? find_refusal(params, ctx_tgt, ctx_dft) : "";
    metrics.shown = has_images && params.aircache_refused.empty();
    if (!has_images && params.aircache.active()) {
        LOG_WRN("without --mmproj there are no images to compress, --aircache-keep has no effect\n");
        params.aircache.keep = 1.0f;
    }
    server_aircache_check(params, params.aircache);
}

void server_aircache_check(const common_params & params, const common_params_aircache & wanted) {
    const auto method = wanted.resolve();
    if (!wanted.active()) {
        return;
    }
    if (!params.aircache_refused.empty()) {
        throw std::invalid_argument("aircache_keep cannot be less than 1 here: " + params.aircache_refused);
    }
    if (method.window == LLAMA_AIRCACHE_WINDOW_ALL && params.n_parallel > 1) {
        throw std::invalid_argument("aircache_window 'all'" + (wanted.window.empty() ? " (of aircache_method '" + wanted.method + "')" : "") +
            " needs a server with one slot (-np 1), this one has " + std::to_string(params.n_parallel));
    }
}

common_json server_aircache_add_params(const common_params_aircache & params, common_json res) {
    res["aircache_keep"]       = params.resolve().keep;
    res["aircache_method"]     = params.method;
    res["aircache_alpha"]      = params.resolve().alpha;
    res["aircache_window"]     = params.window_name();
    res["aircache_allocation"] = params.allocation_name();
    return res;
}

void server_aircache_read(common_params_aircache & params, const std::string & field, const common_json & value) {
    params.check_allowed(field);
    if (field == "aircache_keep" || field == "aircache_alpha") {
        if (!value.is_number()) {
            throw std::invalid_argument("must be a number");
        }
        const double number = value.get<double>();
        field == "aircache_keep" ? params.set_keep(number) : params.set_alpha(number);
        return;
    }
    if (!value.is_string()) {
        throw std::invalid_argument("must be a string");
    }
    if (field == "aircache_method") { // another method brings parts of its own
        params.alpha = 0.0f;
        params.window.clear();
        params.allocation.clear();
    }
    params.set(field, value.get<std::string>());
}

//
// prompts
//

namespace {

struct media {
    size_t idx; // of its first token
    const mtmd_input_chunk * chunk;

    bool   is_image() const { return mtmd_input_chunk_get_type(chunk) == MTMD_INPUT_CHUNK_TYPE_IMAGE; }
    size_t end()      const { return idx + mtmd_input_chunk_get_n_tokens(chunk); }
};

std::vector<media> list_media(const server_tokens & tokens) {
    std::vector<media> res;
    for (size_t i = 0; i < tokens.size(); ) {
        if (tokens[i] != LLAMA_TOKEN_NULL) {
            ++i;
            continue;
        }
        res.push_back({ i, tokens.find_chunk(i).get() });
        i = res.back().end();
    }
    return res;
}

// Images at and behind token `from` that are to be compressed. With sound in the prompt none are: its tokens are
// neither text that observes nor cells that can be dropped.
std::vector<media> list_wanted(const server_tokens & prompt, size_t from, const common_params_aircache & wanted) {
    if (!wanted.active()) {
        return {};
    }
    auto res = list_media(prompt);
    if (!std::all_of(res.begin(), res.end(), [](const media & m) { return m.is_image(); })) {
        return {};
    }
    res.erase(res.begin(), std::find_if(res.begin(), res.end(), [&](const media & m) { return m.idx >= from; }));
    return res;
}

// 1 for the text tokens behind the first of the images that belong to the chat template
std::vector<uint8_t> find_template(const llama_vocab * vocab, const server_tokens & prompt, const std::vector<media> & images) {
    std::vector<uint8_t> res;
    aircache_template_tokens tokens(vocab);
    for (size_t i = images.front().idx; i < prompt.size(); ++i) {
        if (prompt[i] == LLAMA_TOKEN_NULL) {
            tokens.image();
        } else {
            res.push_back(tokens.text(prompt[i]));
        }
    }
    return res;
}

void check(int32_t status) {
    if (status != LLAMA_AIRCACHE_OK) {
        throw std::runtime_error(llama_aircache_error());
    }
}

} // namespace

size_t server_aircache_reusable(const server_tokens & cached, const server_prompt_aircache & compressed,
        const server_tokens & prompt, const common_params_aircache & wanted) {
    const size_t n_common = cached.get_common_prefix(prompt);

    if (compressed.n_tokens > 0) {
        // not at n_common == n_tokens: the first token of the answer comes from the cells of the whole image
        const bool goes_on = n_common > compressed.n_tokens && wanted == compressed.params;
        if (!goes_on) {
            return 0;
        }
    }

    const auto images = list_wanted(prompt, compressed.n_tokens, wanted);
    return images.empty() ? n_common : std::min(n_common, images.front().idx);
}

int64_t server_prompt_aircache::kv_bytes_now(size_t n_tokens_now) const {
    return kv_bytes + ((int64_t) n_tokens_now - (int64_t) n_tokens)*kv_bytes_cell;
}

int32_t server_prompt_aircache::clamp(int32_t n_past) {
    if (n_tokens == 0 || n_past >= (int32_t) n_tokens) {
        return n_past;
    }
    *this = {};
    return 0;
}

common_json server_prompt_aircache::to_json(size_t n_tokens_now) const {
    return common_json {
        {"n_tokens_compressed", n_tokens},
        {"visual_tokens",       n_visual},
        {"kept_tokens",         n_kept},
        {"keep",                params.resolve().keep},
        {"method",              params.method},
        {"n_cells",             n_cells + (int64_t) n_tokens_now - (int64_t) n_tokens},
        {"kv_bytes_full",       (int64_t) n_tokens_now*kv_bytes_cell},
        {"kv_bytes",            kv_bytes_now(n_tokens_now)},
    };
}

common_json server_aircache_stats::to_json() const {
    common_json res = {
        {"visual_tokens", n_visual},
        {"kept_tokens",   n_kept},
        {"keep",          keep},
        {"method",        method},
        {"ms",            ms},
        {"kv_bytes_full", kv_bytes_full},
        {"kv_bytes",      kv_bytes},
    };
    if (!error.empty()) {
        res["error"] = error;
    }
    return res;
}

void server_aircache_metrics::write(std::ostream & out) const {
    const auto counter = [&](const char * name, const char * description, double value) {
        out << "# HELP llamacpp:aircache_" << name << " " << description << "\n"
            << "# TYPE llamacpp:aircache_" << name << " counter\n"
            << "llamacpp:aircache_"        << name << " " << value << "\n";
    };
    if (shown) {
        counter("visual_tokens_total", "Visual tokens of the images that were compressed",       n_visual);
        counter("kept_tokens_total",   "Of these, the tokens kept, as a mean over the layers",   n_kept);
        counter("milliseconds_total",  "Time spent choosing and moving KV cells",                ms);
        counter("images_reused_total", "Images whose embeddings were kept from another request", n_reused);
    }
}

// of a request that continues a compressed prompt and has no new images
static server_aircache_stats continued(const server_prompt_aircache & compressed, size_t n_tokens_now) {
    server_aircache_stats res;
    res.set      = true;
    res.n_visual = compressed.n_visual;
    res.n_kept   = compressed.n_kept;
    res.keep     = compressed.params.resolve().keep;
    res.method   = compressed.params.method;
    res.kv_bytes = compressed.kv_bytes_now(n_tokens_now);
    res.kv_bytes_full = (int64_t) n_tokens_now*compressed.kv_bytes_cell;
    return res;
}

bool server_aircache_truncate(const common_memory & mem, llama_seq_id seq, llama_pos p0) {
    try {
        mem.seq_rm(seq, p0, -1);
        return true;
    } catch (const std::exception & e) {
        LOG_WRN("slot %d: %s\n", seq, e.what());
        return false;
    }
}

void server_aircache_sum_usage(common_json & answers, const std::vector<std::unique_ptr<server_task_result>> & results) {
    const auto result = [&](size_t i) -> const server_task_result_cmpl_final & {
        return static_cast<const server_task_result_cmpl_final &>(*results[i]);
    };
    const size_t n_same = std::max(1, result(0).generation_params.n_cmpl); // answers to each prompt, one after another

    auto stats = result(0).stats;
    stats.n_gen = stats.n_prompt_processed = stats.n_prompt_cached = 0;
    int64_t n_prompt  = 0;
    int64_t n_decoded = 0;
    int64_t n_cached  = 0;
    for (size_t i = 0; i < results.size(); ++i) {
        const auto & r = result(i);
        n_decoded        += r.n_decoded;
        stats.n_gen      += r.stats.n_gen;
        stats.t_gen_last  = std::max(stats.t_gen_last, r.stats.t_gen_last);
        if (i % n_same == 0) {
            n_prompt += r.n_prompt_tokens;
            n_cached += r.n_prompt_tokens_cache;
            stats.n_prompt_processed += r.stats.n_prompt_processed;
            stats.n_prompt_cached    += r.stats.n_prompt_cached;
        }
    }
    answers[0]["usage"] = common_json {
        {"completion_tokens", n_decoded},
        {"prompt_tokens",     n_prompt},
        {"total_tokens",      n_decoded + n_prompt},
        {"prompt_tokens_details", common_json { {"cached_tokens", n_cached} }},
    };
    if (stats.is_set()) {
        answers[0]["timings"] = stats.to_json();
    }
}

void server_aircache_sum_usage(server_task_result & result, int32_t & n_decoded, bool is_last) {
    auto * res = dynamic_cast<server_task_result_cmpl_final *>(&result);
    if (!res || res->generation_params.n_cmpl <= 1 || !res->include_usage) {
        return;
    }
    n_decoded += res->n_decoded;
    res->n_decoded     = n_decoded;
    res->include_usage = is_last;
}

//
// observe, compress
//

void server_aircache_observer::observe(llama_context * ctx, llama_seq_id seq, const mtmd_context * mctx,
        const server_tokens & prompt, size_t n_past, const common_params_aircache & wanted) {
    const bool done   = observing || !error.empty();
    const auto images = done ? std::vector<media>() : list_wanted(prompt, n_past, wanted);
    if (images.empty()) {
        return;
    }

    try {
        std::vector<llama_aircache_span> spans;
        for (const auto & image : images) {
            const llama_pos p0 = prompt.pos_next(image.idx);
            spans.push_back({ p0, p0 + mtmd_input_chunk_get_n_pos(image.chunk), aircache_token_grid(mctx, image.chunk).first });
        }
        const auto method      = wanted.resolve();
        const auto is_template = find_template(llama_model_get_vocab(llama_get_model(ctx)), prompt, images);

        check(llama_aircache_observe(ctx, seq, spans.data(), spans.size(), prompt.pos_next(), &method, is_template.data()));
        observing = true;
    } catch (const std::exception & e) {
        error = e.what();
        LOG_ERR("slot %d: its images are not compressed: %s\n", seq, error.c_str());
    }
}

// budgets and kept cells; returns the number of kept cells in all layers
static size_t choose_and_evict(llama_context * ctx, llama_seq_id seq, const llama_aircache_method & method, int32_t n_layer, int32_t n_visual) {
    std::vector<float>   scores((size_t) n_layer*n_visual);
    std::vector<double>  alive(n_layer);
    std::vector<int32_t> budgets(n_layer);

    const bool need_alive = method.allocation == LLAMA_AIRCACHE_ALLOC_VL;
    check(llama_aircache_score(ctx, seq, &method, scores.data(), nullptr, need_alive ? alive.data() : nullptr));
    check(llama_aircache_allocate(&method, scores.data(), need_alive ? alive.data() : nullptr, n_layer, n_visual, budgets.data(), nullptr, nullptr));

    std::vector<int32_t> kept(std::accumulate(budgets.begin(), budgets.end(), (size_t) 0));
    check(llama_aircache_select(scores.data(), n_layer, n_visual, budgets.data(), method.rank, kept.data()));
    check(llama_aircache_evict(ctx, seq, budgets.data(), kept.data(), method.merge, false));
    return kept.size();
}

std::pair<server_prompt_aircache, server_aircache_stats> server_aircache_observer::compress(llama_context * ctx, llama_seq_id seq,
        size_t n_tokens, const server_prompt_aircache & before, const common_params_aircache & wanted) {
    const int64_t t_start = llama_time_us();

    server_prompt_aircache res = before;
    bool lost = false;
    if (observing) try {
        int32_t n_layer;
        int32_t n_visual;
        check(llama_aircache_dims(ctx, seq, &n_layer, &n_visual, nullptr));
        const size_t n_kept = choose_and_evict(ctx, seq, wanted.resolve(), n_layer, n_visual);
        observing = false; // the eviction has ended it

        llama_aircache_seq_stats stats;
        check(llama_aircache_stats(ctx, seq, &stats));

        res.n_tokens  = n_tokens;
        res.params    = wanted;
        res.n_visual += n_visual;
        res.n_kept   += (double) n_kept/n_layer;
        res.n_cells   = stats.n_cells;
        res.kv_bytes  = stats.kv_bytes;
        res.kv_bytes_cell = stats.kv_bytes_cell;
    } catch (const std::exception & e) {
        error = e.what();
        lost  = llama_memory_seq_pos_max(llama_get_memory(ctx), seq) < 0; // in the middle of the moves: nothing is left
        LOG_ERR("slot %d: its images are not compressed: %s\n", seq, error.c_str());
        res = before;
    }

    auto timings = continued(res, n_tokens);
    timings.keep   = wanted.resolve().keep;
    timings.method = wanted.method;
    timings.ms     = (llama_time_us() - t_start)/1000.0;
    timings.error  = error;
    timings.lost   = lost;
    end(ctx, seq);
    return { res, timings };
}

bool server_aircache_observer::finish(llama_context * ctx, llama_seq_id seq, size_t n_tokens, const common_params_aircache & wanted,
        server_prompt_aircache & prompt, server_aircache_stats & stats, server_aircache_metrics & metrics,
        const std::function<void(std::function<void()> &&)> & yield) {
    if (!active()) {
        if (prompt.n_tokens > 0) {
            stats = continued(prompt, n_tokens);
        }
        return true;
    }

    std::pair<server_prompt_aircache, server_aircache_stats> res;
    yield([&]() {
        res = compress(ctx, seq, n_tokens, prompt, wanted);
    });
    metrics.n_visual += res.first.n_visual - prompt.n_visual;
    metrics.n_kept   += res.first.n_kept   - prompt.n_kept;
    metrics.ms       += res.second.ms;
    prompt = std::move(res.first);
    stats  = std::move(res.second);
    return !stats.lost;
}

void server_aircache_observer::end(llama_context * ctx, llama_seq_id seq) {
    if (observing) {
        llama_aircache_clear(ctx, seq);
        observing = false;
    }
    error.clear();
}

//
// embeddings
//

// Tiles of a picture share its id, so they are told apart by their order. Empty: the chunk has no id.
std::string server_aircache_embds::key(const server_tokens & prompt, size_t idx) {
    const auto id_of = [](const mtmd_input_chunk * chunk) {
        const char * id = mtmd_input_chunk_get_id(chunk);
        return std::string(id ? id : "");
    };

    const mtmd_input_chunk * chunk = prompt.find_chunk(idx).get();
    const auto id = id_of(chunk);
    if (id.empty()) {
        return "";
    }
    int32_t nth = 0;
    for (const auto & m : list_media(prompt)) {
        nth += m.idx < idx && id_of(m.chunk) == id;
    }
    return id + "/" + std::to_string(nth) + "/" + std::to_string(mtmd_input_chunk_get_n_tokens(chunk));
}

bool server_aircache_embds::contains(const server_tokens & prompt, size_t idx) const {
    return index.count(key(prompt, idx)) > 0;
}

float * server_aircache_embds::find(server_aircache_embds * kept, mtmd_batch * batch, const server_tokens & prompt, size_t idx) {
    float * embd = batch ? mtmd_batch_get_output_embd(batch, prompt.find_chunk(idx).get()) : nullptr;
    return embd || !kept ? embd : kept->take(prompt, idx);
}

float * server_aircache_embds::take(const server_tokens & prompt, size_t idx) {
    const auto it = index.find(key(prompt, idx));
    if (it == index.end()) {
        return nullptr;
    }
    entries.splice(entries.begin(), entries, it->second);
    n_reused++;
    return it->second->embd.data();
}

void server_aircache_embds::store(mtmd_batch * batch, const server_tokens & prompt, size_t n_embd) {
    for (const auto & m : list_media(prompt)) {
        const float * embd = mtmd_batch_get_output_embd(batch, m.chunk);
        const auto    name = key(prompt, m.idx);
        const size_t  n    = mtmd_input_chunk_get_n_tokens(m.chunk)*n_embd;
        if (!embd || name.empty() || index.count(name) || n*sizeof(float) > EMBDS_MAX_BYTES) {
            continue;
        }
        entries.push_front({ name, { embd, embd + n } });
        index[name] = entries.begin();
        n_bytes += n*sizeof(float);
    }
    while (n_bytes > EMBDS_MAX_BYTES) {
        n_bytes -= entries.back().embd.size()*sizeof(float);
        index.erase(entries.back().key);
        entries.pop_back();
    }
}

void server_aircache_embds::clear() {
    entries.clear();
    index.clear();
    n_bytes = 0;
}
