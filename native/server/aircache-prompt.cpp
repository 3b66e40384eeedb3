// A slot's prompt: what of it can be used again, and the compression of its images.
#include "aircache-server.h"
#include "aircache-tokens.h"
#include "../common/template-tokens.h"

#include "aircache-mtmd.h"
#include "common.h"
#include "log.h"

#include <algorithm>
#include <stdexcept>

#if defined(__GLIBC__)
#    include <malloc.h>
#endif

//
// what can be used again
//

namespace {

// 1 for the text tokens behind the first of the images that belong to the chat template
std::vector<uint8_t> find_template(const llama_vocab * vocab, const server_tokens & prompt, const std::vector<server_aircache_chunk> & images) {
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

std::vector<server_aircache_chunk> server_aircache_images(const server_tokens & prompt, size_t from) {
    if (!prompt.aircache.wanted.active()) {
        return {};
    }
    auto res = server_aircache_chunks(prompt);
    if (!std::all_of(res.begin(), res.end(), [](const server_aircache_chunk & m) { return m.is_image(); })) {
        return {};
    }
    res.erase(res.begin(), std::find_if(res.begin(), res.end(), [&](const server_aircache_chunk & m) { return m.idx >= from; }));
    return res;
}

size_t server_aircache_reusable(const server_tokens & cached, const server_tokens & prompt, size_t n_common) {
    const auto & cells = cached.aircache.cells;
    if (prompt.aircache.compressed()) { // not a request's
        const auto & other = prompt.aircache.cells;
        const bool same = cells.n_tokens == other.n_tokens && n_common >= cells.n_tokens && cells.params == other.params;
        return same ? n_common : 0;
    }
    if (cells.n_tokens > 0) {
        // not at n_common == n_tokens: the first token of the answer comes from the cells of the whole image
        const bool goes_on = n_common > cells.n_tokens && prompt.aircache.wanted == cells.params;
        if (!goes_on) {
            return 0;
        }
    }

    const auto images = server_aircache_images(prompt, std::max(cells.n_tokens, cached.aircache.n_observed));
    return images.empty() ? n_common : std::min(n_common, images.front().idx);
}

bool server_aircache_truncate(const common_memory & mem, llama_seq_id seq, server_tokens & kept, llama_pos p0) {
    if (kept.size() < kept.aircache.cells.n_tokens) {
        kept.aircache.cells = {};
        if (!kept.empty()) {
            return false;
        }
    }
    try {
        mem.seq_rm(seq, p0, -1);
        return true;
    } catch (const std::exception & e) {
        LOG_WRN("slot %d: %s\n", seq, e.what());
        return false;
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

//
// observe, compress
//

void server_aircache_observer::observe(llama_context * ctx, llama_seq_id seq, const mtmd_context * mctx,
        const server_tokens & prompt, size_t n_past) {
    const bool done   = observing || !error.empty();
    const auto images = done ? std::vector<server_aircache_chunk>() : server_aircache_images(prompt, n_past);
    if (images.empty()) {
        return;
    }

    try {
        std::vector<llama_aircache_span> spans;
        for (const auto & image : images) {
            const llama_pos p0 = prompt.pos_next(image.idx);
            spans.push_back({ p0, p0 + mtmd_input_chunk_get_n_pos(image.chunk), aircache_token_grid(mctx, image.chunk).first });
        }
        const auto method      = prompt.aircache.wanted.resolve();
        const auto is_template = find_template(llama_model_get_vocab(llama_get_model(ctx)), prompt, images);

        check(llama_aircache_observe(ctx, seq, spans.data(), spans.size(), prompt.pos_next(), &method, is_template.data()));
        observing = true;
    } catch (const std::exception & e) {
        error = e.what();
        LOG_ERR("slot %d: its images are not compressed: %s\n", seq, error.c_str());
    }
}

// Reading pictures takes tens of MB a request, in whichever HTTP thread does it, and glibc keeps what a thread has freed.
static void trim_heaps() {
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
}

// memory as a whole, all slots; what is not known stays 0
static void add_memory(llama_context * ctx, server_aircache_stats & stats) {
    auto bytes = llama_aircache_bytes_empty();
    llama_aircache_memory(ctx, -1, &bytes);
    stats.kv_bytes_reserved  = bytes.reserved;
    stats.kv_bytes_allocated = bytes.allocated;
}

std::pair<server_prompt_aircache, server_aircache_stats> server_aircache_observer::compress(llama_context * ctx, llama_seq_id seq,
        const server_tokens & held, const common_params_aircache & wanted) {
    const int64_t t_start = llama_time_us();

    server_prompt_aircache res = held.aircache.cells;
    bool lost = false;
    if (observing) try {
        archive(ctx, seq, held);

        const auto method = wanted.resolve();
        auto done = llama_aircache_compression_empty();
        check(llama_aircache_compress(ctx, seq, &method, false, &done));
        observing = false; // the eviction has ended it

        auto stats = llama_aircache_stats_empty();
        check(llama_aircache_stats(ctx, seq, &stats));

        res.n_tokens  = held.size();
        res.params    = wanted;
        res.n_visual += done.n_visual;
        res.n_kept   += (double) done.n_kept/done.n_layer;
        res.n_cells   = stats.n_cells;
        res.kv_bytes  = stats.kv_bytes;
        res.kv_bytes_cell = stats.kv_bytes_cell;
    } catch (const std::exception & e) {
        error = e.what();
        lost  = llama_memory_seq_pos_max(llama_get_memory(ctx), seq) < 0; // in the middle of the moves: nothing is left
        LOG_ERR("slot %d: its images are not compressed: %s\n", seq, error.c_str());
        res = held.aircache.cells;
    }

    auto timings = continued(res, held.size());
    timings.keep   = wanted.resolve().keep;
    timings.method = wanted.method;
    timings.ms     = (llama_time_us() - t_start)/1000.0;
    timings.error  = error;
    timings.lost   = lost;
    timings.n_recalled = n_recalled;
    add_memory(ctx, timings);
    return { res, timings };
}

bool server_aircache_observer::finish(llama_context * ctx, llama_seq_id seq, const common_params_aircache & wanted, server_tokens & held,
        server_aircache_stats & stats, const std::function<void(std::function<void()> &&)> & yield) {
    auto & cells = held.aircache.cells;
    if (!active()) {
        if (cells.n_tokens > 0) {
            stats = continued(cells, held.size());
            add_memory(ctx, stats);
        }
        return true;
    }

    std::pair<server_prompt_aircache, server_aircache_stats> res;
    yield([&]() {
        res = compress(ctx, seq, held, wanted);
        trim_heaps();
    });
    end(ctx, seq, held);
    server_aircache_count(res.first.n_visual - cells.n_visual, res.first.n_kept - cells.n_kept, res.second.ms);
    cells = std::move(res.first);
    stats = std::move(res.second);
    return !stats.lost;
}

void server_aircache_observer::end(llama_context * ctx, llama_seq_id seq, server_tokens & held) {
    if (observing) {
        llama_aircache_clear(ctx, seq);
        observing = false;
    }
    held.aircache.n_observed = 0;
    n_recalled = 0;
    n_granted  = 0;
    waits      = false;
    error.clear();
}
