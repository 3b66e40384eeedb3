#include "bench.h"
#include "engine.h"

#include "../src/llama-ext.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

namespace {

constexpr int32_t MAX_SEQS  = 256;  // llama.cpp's
constexpr int32_t N_BEFORE  = 16;   // text tokens before the images
constexpr int32_t N_BEHIND  = 48;   // and behind them, at least
constexpr int32_t MAX_IMAGE = 4096; // tokens
constexpr double  SPREAD    = 1.7;  // the largest budget by their mean: measured for keep 0.1, docs/bench.md

pac_bench_params fill_in(pac_bench_params params) {
    pac_check_range("n_seqs",    params.n_seqs,    1, MAX_SEQS);
    pac_check_range("n_prompt",  params.n_prompt,  2*(N_BEFORE + N_BEHIND), 1 << 24);
    pac_check_range("n_decode",  params.n_decode,  1, 1 << 24);
    pac_check_range("n_batch",   params.n_batch,   0, 1 << 16);
    pac_check_range("n_threads", params.n_threads, 0, GGML_MAX_N_THREADS);
    pac_check_range("all conversations' cells", (int64_t) params.n_seqs*(params.n_prompt + params.n_decode), 1, 1 << 28);
    pac_check_range("flash_attn", params.flash_attn, -1, 1);
    params.n_batch   = params.n_batch > 0 ? params.n_batch : 512;
    params.n_threads = pac_pick_threads(params.n_threads);
    return params;
}

llama_context * make_context(const pac_bench_params & params, const pac_model & model, pac_bench * bench) {
    llama_context_params cparams = pac_context_params(params.n_seqs, params.n_threads, params.flash_attn, params.cache_type_k, params.cache_type_v);
    cparams.n_ctx           = GGML_PAD(params.n_prompt + params.n_decode, 256)*params.n_seqs;
    cparams.n_batch         = std::max(params.n_batch, params.n_seqs);
    cparams.n_ubatch        = cparams.n_batch;
    cparams.abort_callback_data = bench;
    cparams.abort_callback      = [](void * user_data) { return ((const pac_bench *) user_data)->cancelled.load(); };

    const auto lock = pac_lock_devices();
    pac_take_logged_error();
    llama_context * res = llama_init_from_model(model.weights.get(), cparams);
    if (!res) {
        throw pac_error(PAC_ERR_MEMORY, pac_format("cannot create a context of %d x %d cells (%s K, %s V): %s", params.n_seqs,
                cparams.n_ctx/params.n_seqs, ggml_type_name(cparams.type_k), ggml_type_name(cparams.type_v), pac_take_logged_error().c_str()));
    }
    return res;
}

// llama_batch over arrays of its own: tokens of one sequence, or rows of embeddings
struct batch {
    std::vector<llama_token> tokens;
    std::vector<float>       embd;
    std::vector<llama_pos>   pos; // of embeddings all their parts, one after the other
    std::vector<int32_t>     n_seq_id;
    std::vector<llama_seq_id>   seqs;
    std::vector<llama_seq_id *> seq_id;
    std::vector<int8_t>      logits;

    void add(llama_seq_id seq) {
        n_seq_id.push_back(1);
        seqs.push_back(seq);
        logits.push_back(0);
    }

    llama_batch get() {
        seq_id.clear();
        for (auto & seq : seqs) {
            seq_id.push_back(&seq);
        }
        llama_batch res = {};
        res.n_tokens = seqs.size();
        res.token    = tokens.empty() ? nullptr : tokens.data();
        res.embd     = embd.empty()   ? nullptr : embd.data();
        res.pos      = pos.data();
        res.n_seq_id = n_seq_id.data();
        res.seq_id   = seq_id.data();
        res.logits   = logits.data();
        return res;
    }
};

void decode(llama_context * ctx, batch & b) {
    pac_take_logged_error();
    const int32_t status = llama_decode(ctx, b.get());
    if (status == 2) {
        throw pac_error(PAC_ERR_CANCELLED, "cancelled");
    }
    if (status != 0) {
        throw pac_error(status == 1 ? PAC_ERR_CONTEXT : PAC_ERR_COMPUTE, pac_format("llama_decode failed (%d): %s", status, pac_take_logged_error().c_str()));
    }
}

bool has_mrope(const llama_model * model) {
    const auto type = llama_model_rope_type(model);
    return type == LLAMA_ROPE_TYPE_MROPE || type == LLAMA_ROPE_TYPE_IMROPE;
}

double ms_since(int64_t t_us) {
    return (ggml_time_us() - t_us)/1000.0;
}

} // namespace

pac_bench::pac_bench(std::shared_ptr<pac_model> model_, const pac_bench_params & given) :
        model(std::move(model_)), params(fill_in(given)), ctx(make_context(params, *model, this)), conversations(params.n_seqs) {
    pac_check(llama_aircache_supported(ctx.get()));
    lay_out();
    model->n_engines++;
}

pac_bench::~pac_bench() {
    model->n_engines--;
}

// Images as square as can be; what does not fit their grids is text.
void pac_bench::lay_out() {
    const int32_t wanted   = params.n_prompt - N_BEFORE - N_BEHIND;
    const int32_t n_images = (wanted + MAX_IMAGE - 1)/MAX_IMAGE;
    const bool    mrope    = has_mrope(model->weights.get());

    llama_pos pos = N_BEFORE;
    for (int32_t i = 0; i < n_images; ++i) {
        const int32_t n  = wanted/n_images;
        const int32_t nx = std::max(1, (int32_t) std::sqrt((double) n));
        const int32_t ny = n/nx;
        spans.push_back({ pos, pos + (mrope ? ny : nx*ny), nx });
        n_tokens.push_back(nx*ny);
        n_visual += nx*ny;
        pos = spans.back().p1;
    }
    pos_end = pos + params.n_prompt - N_BEFORE - n_visual;
}

struct pac_bench_info pac_bench::info() const {
    struct pac_bench_info res = {};
    res.n_layers    = llama_model_n_layer(model->weights.get());
    res.n_ctx       = llama_n_ctx(ctx.get());
    res.n_visual    = n_visual;
    res.n_text      = params.n_prompt - n_visual;
    res.n_batch     = params.n_batch;
    res.n_threads   = params.n_threads;
    res.n_devices   = llama_model_n_devices(model->weights.get());
    res.model_bytes = llama_model_size(model->weights.get());
    res.step_bytes  = res.model_bytes - model->embedding_bytes;

    auto stats = llama_aircache_stats_empty();
    pac_check(llama_aircache_stats(ctx.get(), 0, &stats));
    res.kv_bytes_per_token = stats.kv_bytes_cell;
    return res;
}

struct pac_bench_stats pac_bench::stats() const {
    struct pac_bench_stats res = {};
    for (int32_t s = 0; s < params.n_seqs; ++s) {
        auto stats = llama_aircache_stats_empty();
        pac_check(llama_aircache_stats(ctx.get(), s, &stats));
        res.kv_bytes += stats.kv_bytes;

        auto bytes = llama_aircache_bytes_empty();
        pac_check(llama_aircache_memory(ctx.get(), s, &bytes));
        res.kv_bytes_reserved  += bytes.reserved;
        res.kv_bytes_allocated += bytes.allocated;
    }
    for (const auto & [_, part] : llama_get_memory_breakdown(ctx.get())) {
        res.compute_bytes += part.compute;
    }
    res.n_graphs_reused = llama_perf_context(ctx.get()).n_reused;
    return res;
}

void pac_bench::check_seq(int32_t seq) const {
    pac_check_range("seq", seq, 0, params.n_seqs - 1);
}

//
// prompts
//

double pac_bench::fill(int32_t seq, bool computed, const pac_method * observe, uint32_t seed, pac_progress_callback progress, void * user_data) {
    check_seq(seq);
    if (conversations[seq].filled) {
        throw pac_error(PAC_ERR_STATE, pac_format("conversation %d has a prompt already", seq));
    }
    const auto method = observe ? pac_to_llama(*observe) : llama_aircache_method_default();

    cancelled = false;
    const int64_t t_start = ggml_time_us();
    try {
        if (!computed) {
            pac_check(llama_aircache_synthetic(ctx.get(), seq, spans.data(), spans.size(), pos_end, seed, observe ? &method : nullptr));
        } else {
            if (observe) {
                pac_check(llama_aircache_observe(ctx.get(), seq, spans.data(), spans.size(), pos_end, &method, nullptr));
            }
            compute(seq, seed, progress, user_data);
        }
    } catch (...) {
        llama_aircache_clear(ctx.get(), seq);
        llama_memory_seq_rm(llama_get_memory(ctx.get()), seq, -1, -1);
        throw;
    }
    conversations[seq].filled = true;
    conversations[seq].next   = seed % model->n_vocab();
    return ms_since(t_start);
}

void pac_bench::compute(int32_t seq, uint32_t seed, pac_progress_callback progress, void * user_data) {
    std::mt19937 random(seed);
    const int32_t n_embd = model->n_embd_inp();
    const bool    mrope  = has_mrope(model->weights.get());
    int32_t done = 0;

    const auto run = [&](batch & b) {
        if (cancelled) {
            throw pac_error(PAC_ERR_CANCELLED, "cancelled");
        }
        done += b.seqs.size();
        b.logits.back() = done == params.n_prompt;
        decode(ctx.get(), b);
        if (progress && !progress(2, done, params.n_prompt, user_data)) {
            throw pac_error(PAC_ERR_CANCELLED, "cancelled");
        }
    };
    const auto text = [&](llama_pos p0, llama_pos p1) {
        while (p0 < p1) {
            batch b;
            for (; p0 < p1 && (int32_t) b.seqs.size() < params.n_batch; ++p0) {
                b.tokens.push_back(random() % model->n_vocab());
                b.pos.push_back(p0);
                b.add(seq);
            }
            run(b);
        }
    };
    const auto image = [&](const llama_aircache_span & span, int32_t n_all) {
        const float scale = std::sqrt(3.0f/n_embd)/2147483648.0f; // rows of length 1, as long as an embedding's
        for (int32_t first = 0; first < n_all; first += params.n_batch) {
            const int32_t n = std::min(params.n_batch, n_all - first);
            batch b;
            b.pos.resize(mrope ? 4*n : n);
            for (int32_t i = 0; i < n; ++i) {
                if (mrope) {
                    b.pos[i]       = span.p0;
                    b.pos[n + i]   = span.p0 + (first + i)/span.nx;
                    b.pos[2*n + i] = span.p0 + (first + i)%span.nx;
                } else {
                    b.pos[i] = span.p0 + first + i;
                }
                b.add(seq);
            }
            b.embd.resize((size_t) n*n_embd);
            for (auto & x : b.embd) {
                x = scale*(int32_t) random();
            }
            run(b);
        }
    };

    llama_pos pos = 0;
    for (size_t i = 0; i < spans.size(); ++i) {
        text(pos, spans[i].p0);
        image(spans[i], n_tokens[i]);
        pos = spans[i].p1;
    }
    text(pos, pos_end);
    llama_synchronize(ctx.get());
}

std::vector<int32_t> pac_bench_budgets(double keep, int32_t n_layers, int32_t n_visual, int32_t min_keep, uint32_t seed) {
    const double mean  = keep*n_visual;
    const double above = n_layers > 1 ? std::min(SPREAD - 1, 1/keep - 1) : 0; // the largest: (1 + above) * mean

    std::vector<int32_t> res;
    double sum = 0;
    int64_t total = 0;
    for (int32_t l = 0; l < n_layers; ++l) {
        sum += mean*(1 + (n_layers > 1 ? above*(2.0*l/(n_layers - 1) - 1) : 0));
        res.push_back(std::clamp<int64_t>(std::llround(sum) - total, std::min(min_keep, n_visual), n_visual));
        total += res.back();
    }
    std::mt19937 random(seed);
    std::shuffle(res.begin(), res.end(), random);
    return res;
}

void pac_bench::evict(int32_t seq, const pac_method & method, uint32_t seed, double & ms_score, double & ms_evict) {
    check_seq(seq);
    const auto m = pac_to_llama(method);

    int32_t n_layers = 0;
    int32_t n        = 0;
    pac_check(llama_aircache_dims(ctx.get(), seq, &n_layers, &n, nullptr));

    // as if it counted
    std::vector<float>   scores((size_t) n_layers*n_visual);
    std::vector<double>  alive(n_layers);
    std::vector<int32_t> budgets(n_layers);
    std::vector<int32_t> kept(scores.size());
    int64_t t_start = ggml_time_us();
    pac_check(llama_aircache_score(ctx.get(), seq, &m, scores.data(), scores.size(), nullptr, 0, alive.data(), alive.size()));
    pac_check(llama_aircache_allocate(&m, scores.data(), alive.data(), n_layers, n_visual, budgets.data(), nullptr, nullptr));
    pac_check(llama_aircache_select(scores.data(), n_layers, n_visual, budgets.data(), m.rank, kept.data(), kept.size()));
    ms_score = ms_since(t_start);

    budgets = pac_bench_budgets(m.keep, n_layers, n_visual, m.min_keep, seed);
    std::mt19937 random(seed + 1);
    std::vector<int32_t> all(n_visual);
    std::iota(all.begin(), all.end(), 0);
    kept.clear();
    for (const int32_t budget : budgets) {
        std::sample(all.begin(), all.end(), std::back_inserter(kept), budget, random); // keeps the order
    }
    t_start = ggml_time_us();
    pac_check(llama_aircache_evict(ctx.get(), seq, budgets.data(), kept.data(), m.merge, /*mask_only =*/ false));
    conversations[seq].compressed = true;
    if (std::all_of(conversations.begin(), conversations.end(), [](const auto & c) { return c.compressed; })) {
        pac_check(llama_aircache_resize(ctx.get(), 0)); // smaller buffers on a device; pages go by themselves
    }
    ms_evict = ms_since(t_start);
}

//
// decoding
//

double pac_bench::step() {
    for (const auto & c : conversations) {
        if (!c.filled) {
            throw pac_error(PAC_ERR_STATE, "a conversation has no prompt yet: fill all of them first");
        }
        if (c.n_decoded == params.n_decode) {
            throw pac_error(PAC_ERR_CONTEXT, pac_format("there is no room for more than %d tokens", params.n_decode));
        }
    }
    const int64_t t_start = ggml_time_us();

    batch b;
    for (int32_t s = 0; s < params.n_seqs; ++s) {
        b.tokens.push_back(conversations[s].next);
        b.pos.push_back(pos_end + conversations[s].n_decoded);
        b.add(s);
        b.logits.back() = 1;
    }
    cancelled = false;
    decode(ctx.get(), b);

    const int32_t n_vocab = model->n_vocab();
    for (int32_t s = 0; s < params.n_seqs; ++s) {
        const float * logits = llama_get_logits_ith(ctx.get(), s); // waits for the device
        if (!logits) {
            throw pac_error(PAC_ERR_COMPUTE, "a step gave no logits");
        }
        conversations[s].next = std::max_element(logits, logits + n_vocab) - logits;
        conversations[s].n_decoded++;
    }
    return ms_since(t_start);
}

void pac_bench::clear() {
    for (int32_t s = 0; s < params.n_seqs; ++s) {
        llama_aircache_clear(ctx.get(), s);
        conversations[s] = {};
    }
    llama_memory_clear(llama_get_memory(ctx.get()), false);
}
