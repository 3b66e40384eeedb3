// Observers, the query buffers that they share, and what they take from a ubatch.
#include "cache/observer.h"

#include "cache/aircache.h"
#include "cache/faults.h"

#include <algorithm>
#include <map>
#include <new>

llama_aircache_needs::llama_aircache_needs(const llama_aircache_method & method, uint32_t n_text_all) {
    const auto text = [&](uint32_t n) { n_text = std::max(n_text, std::min(n, n_text_all)); };

    if (method.allocation == LLAMA_AIRCACHE_ALLOC_VL) {
        text(n_text_all);
    }
    if (method.score != LLAMA_AIRCACHE_SCORE_ATTENTION) {
        return;
    }
    if (method.last_term > 0.0) {
        text(1);
    }
    switch (method.window) {
        case LLAMA_AIRCACHE_WINDOW_LAST:   text(method.window_n);    break;
        case LLAMA_AIRCACHE_WINDOW_VISUAL: n_last = method.window_n; break;
        case LLAMA_AIRCACHE_WINDOW_ALL:    sum = true;               break;
        default:                           text(n_text_all);
    }
}

uint32_t llama_aircache_observer::next_slot(uint32_t cell) {
    const uint32_t i = n_ring++ % n_last;
    last_cell[i] = cell;
    return n_text + i;
}

int32_t llama_aircache_observer::text_slot(llama_pos pos) const {
    if (pos < spans[0].p1 || pos >= pos_end) {
        return -1;
    }

    // text advances by one position a token; the images between are left out
    int32_t res = pos - spans[0].p1;
    for (size_t i = 1; i < spans.size(); ++i) {
        if (pos >= spans[i].p1) {
            res -= spans[i].p1 - spans[i].p0;
        } else if (pos >= spans[i].p0) {
            return -1;
        }
    }

    return res;
}

bool llama_aircache_observer::is_visual(llama_pos pos) const {
    return std::any_of(spans.begin(), spans.end(), [&](const auto & span) { return pos >= span.p0 && pos < span.p1; });
}

//
// buffers
//

llama_aircache_buffers::llama_aircache_buffers(const std::vector<spec> & specs) {
    const ggml_init_params params = { (specs.size() + 1)*ggml_tensor_overhead(), nullptr, true };
    std::map<ggml_backend_buffer_type_t, ggml_context_ptr> by_buft;

    for (const auto & s : specs) {
        auto & ctx = by_buft[s.buft];
        if (!ctx) {
            ctx.reset(ggml_init(params));
        }
        if (!ctx) {
            throw std::bad_alloc();
        }
        tensors.push_back(ggml_new_tensor_2d(ctx.get(), s.type, s.ne0, s.ne1));
    }

    for (auto & [buft, ctx] : by_buft) {
        const llama_aircache_fault_pause others;

        ggml_backend_buffer_ptr buf(llama_aircache_fault("buffer") ? nullptr : ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), buft));
        if (!buf) {
            throw std::bad_alloc();
        }
        ggml_backend_buffer_clear(buf.get(), 0);
        bufs.push_back(std::move(buf));
        ctxs.push_back(std::move(ctx));
    }
}

std::vector<llama_aircache_observer *> llama_aircache::by_row() const {
    std::vector<llama_aircache_observer *> res;
    for (const auto & [seq, obs] : observers) {
        if (obs->n_rows() > 0) {
            res.push_back(obs.get());
        }
    }
    std::sort(res.begin(), res.end(), [](const auto * a, const auto * b) { return a->row0 < b->row0; });
    return res;
}

uint32_t llama_aircache::take_rows(uint32_t n) {
    uint32_t end  = 0; // of the rows before
    uint32_t used = 0;
    for (const auto * obs : by_row()) {
        if (obs->row0 - end >= n) {
            return end;
        }
        end   = obs->row0 + obs->n_rows();
        used += obs->n_rows();
    }

    if (n > 0 && end + n > n_rows) {
        resize_rows(used + n + used/2); // not one by one where many sequences begin at once
        end = used;
    }

    return end;
}

llama_aircache_buffers::spec llama_aircache::query_spec(uint32_t ikv, uint32_t n) const {
    const auto & layer = kv.layers[ikv];

    // F16 takes half the memory, and is no less exact than the cache, whose keys have this precision or less. Where somebody
    // asked for F32 the scores shall be as exact; where for BF16, the model's values may be too large for F16.
    const bool wide = layer.k->type == GGML_TYPE_F32 || layer.k->type == GGML_TYPE_BF16;

    const int64_t n_embd = (int64_t) kv.hparams.n_embd_head_k(layer.il)*kv.hparams.n_head(layer.il);

    return { ggml_backend_buffer_get_type(layer.k->buffer), wide ? GGML_TYPE_F32 : GGML_TYPE_F16, n_embd, n };
}

void llama_aircache::resize_rows(uint32_t n) {
    std::vector<llama_aircache_buffers::spec> specs;
    for (uint32_t l = 0; l < n_layer(); ++l) {
        specs.push_back(query_spec(l, n));
    }

    llama_aircache_buffers fresh(specs);

    // the observers' rows, one range after the other
    const auto live = by_row();

    for (uint32_t l = 0; l < n_layer() && !live.empty(); ++l) {
        ggml_context_ptr ctx(ggml_init({ (2*live.size() + 1)*ggml_tensor_overhead(), nullptr, true }));
        if (!ctx) {
            throw std::bad_alloc();
        }
        const auto range = [&](ggml_tensor * t, uint32_t row0, uint32_t n) {
            ggml_tensor * res = ggml_view_2d(ctx.get(), t, t->ne[0], n, t->nb[1], row0*t->nb[1]);
            ggml_backend_view_init(res);
            return res;
        };
        uint32_t row0 = 0;
        for (const auto * obs : live) {
            ggml_backend_tensor_copy(range(query_rows[l], obs->row0, obs->n_rows()), range(fresh[l], row0, obs->n_rows()));
            row0 += obs->n_rows();
        }
    }

    uint32_t row0 = 0;
    for (auto * obs : live) {
        obs->row0 = row0;
        row0 += obs->n_rows();
    }

    query_rows = std::move(fresh);
    n_rows     = n;
    version++;
}

//
// observers
//

// The most visual tokens that the spans can hold. Without M-RoPE each has a position of its own; with it an image of
// nx * ny tokens takes max(nx, ny) positions.
static uint64_t max_visual(const llama_aircache_span * spans, int32_t n_spans, bool mrope) {
    uint64_t res = 0;
    for (int32_t i = 0; i < n_spans; ++i) {
        const uint64_t n  = spans[i].p1 - spans[i].p0;
        const uint64_t nx = spans[i].nx;
        res += std::min<uint64_t>(!mrope ? n : n*(nx > 0 && nx < n ? nx : n), UINT32_MAX);
    }
    return res;
}

void llama_aircache::observe(llama_seq_id seq, const llama_aircache_span * spans, int32_t n_spans, llama_pos pos_end,
        const llama_aircache_method & method, const uint8_t * is_template) {
    auto obs = std::make_unique<llama_aircache_observer>();

    obs->seq = seq;
    obs->spans.assign(spans, spans + n_spans);
    obs->pos_end = pos_end;
    obs->n_text  = pos_end - spans[0].p1;
    for (int32_t i = 1; i < n_spans; ++i) {
        obs->n_text -= spans[i].p1 - spans[i].p0;
    }

    const llama_aircache_needs needs(method, obs->n_text);

    obs->first_slot = obs->n_text - needs.n_text;
    obs->n_last     = std::min<uint64_t>({ needs.n_last, kv.get_size(), max_visual(spans, n_spans, kv.hparams.n_pos_per_embd() > 1) });
    obs->seen.resize(obs->n_text, 0);
    obs->last_cell.resize(obs->n_last, UINT32_MAX);
    if (is_template) {
        obs->is_template.assign(is_template, is_template + obs->n_text);
    }

    if (needs.sum) {
        std::vector<llama_aircache_buffers::spec> specs;
        for (const auto & layer : kv.layers) {
            specs.push_back({ ggml_backend_buffer_get_type(layer.k->buffer), GGML_TYPE_F32, kv.get_size(), 1 });
        }
        obs->sums = llama_aircache_buffers(specs);
        version++;
    }

    obs->row0 = take_rows(obs->n_rows());

    const auto it = observers.emplace(seq, nullptr).first;
    if (it->second && it->second->sum()) {
        version++;
    }
    it->second = std::move(obs);
}

void llama_aircache::forget(llama_seq_id seq) {
    const auto it = observers.find(seq);
    if (it == observers.end()) {
        return;
    }
    if (it->second->sum()) {
        version++;
    }
    observers.erase(it);

    uint32_t used = 0;
    for (const auto & [_, obs] : observers) {
        used += obs->n_rows();
    }

    if (used == 0 && n_rows > 0) {
        query_rows = {};
        n_rows     = 0;
        version++;
    } else if (n_rows > 4*used) {
        try {
            resize_rows(used);
        } catch (...) {
            // no memory for smaller ones: the large ones still serve
        }
    }
}

llama_aircache_observer * llama_aircache::observer(llama_seq_id seq) {
    const auto it = observers.find(seq);
    return it == observers.end() ? nullptr : it->second.get();
}

const llama_aircache_observer * llama_aircache::summing(uint32_t stream) const {
    for (const auto & [seq, obs] : observers) {
        if (obs->sum() && kv.seq_to_stream[seq] == stream) {
            return obs.get();
        }
    }
    return nullptr;
}

llama_aircache_observed llama_aircache::observed(const llama_ubatch & ubatch) {
    llama_aircache_observed res;

    std::map<llama_aircache_observer *, uint32_t> n_visual;

    // From the last token on: of the visual ones only the last n_last of a sequence find room in its ring, and two that
    // write the same row would do so in any order.
    for (uint32_t t = observers.empty() ? 0 : ubatch.n_tokens; t-- > 0;) {
        // a graph that is only reserved has no sequences
        auto * obs = ubatch.seq_id[t] ? observer(ubatch.seq_id[t][0]) : nullptr;
        if (!obs) {
            continue;
        }

        const llama_pos pos  = ubatch.pos[t];
        const int32_t   slot = obs->text_slot(pos);

        if (obs->sum() && pos >= obs->spans[0].p0 && pos < obs->pos_end) {
            res.sum = obs;
            res.summed.push_back(t);
        }
        if (slot >= (int32_t) obs->first_slot) {
            res.queries.push_back({ t, slot, obs });
        } else if (slot < 0 && obs->is_visual(pos) && n_visual[obs]++ < obs->n_last) {
            res.queries.push_back({ t, -1, obs });
        }
    }

    std::reverse(res.queries.begin(), res.queries.end());

    return res;
}
