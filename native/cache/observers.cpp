#include "cache/observers.h"

#include "llama-hparams.h"

#include <algorithm>
#include <new>
#include <utility>

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

uint32_t llama_aircache_observer::next_query(uint32_t cell) {
    const uint32_t i = n_ring++ % n_last;
    last_cell[i] = cell;
    return n_text + i;
}

int32_t llama_aircache_observer::text_query(llama_pos pos) const {
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
// rows of the query buffers
//

std::vector<llama_aircache_observer *> llama_aircache_observers::by_row() const {
    std::vector<llama_aircache_observer *> res;
    for (const auto & [seq, obs] : observers) {
        if (obs->n_rows() > 0) {
            res.push_back(obs.get());
        }
    }
    std::sort(res.begin(), res.end(), [](const auto * a, const auto * b) { return a->row0 < b->row0; });
    return res;
}

uint32_t llama_aircache_observers::take_rows(uint32_t n) {
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

llama_aircache_buffers::spec llama_aircache_observers::query_spec(const llama_aircache_kv & kv, uint32_t ikv, uint32_t n) {
    const ggml_tensor * k = kv.k(ikv);

    // F16 takes half the memory, and is no less exact than the cache, whose keys have this precision or less. Where somebody
    // asked for F32 the scores shall be as exact; where for BF16, the model's values may be too large for F16.
    const bool wide = k->type == GGML_TYPE_F32 || k->type == GGML_TYPE_BF16;

    const int64_t n_embd = (int64_t) kv.hparams().n_embd_head_k(kv.layer_il(ikv))*kv.hparams().n_head(kv.layer_il(ikv));

    return { ggml_backend_buffer_get_type(k->buffer), wide ? GGML_TYPE_F32 : GGML_TYPE_F16, n_embd, n };
}

void llama_aircache_observers::resize_rows(uint32_t n) {
    std::vector<llama_aircache_buffers::spec> specs;
    for (uint32_t l = 0; l < kv.n_layer(); ++l) {
        specs.push_back(query_spec(kv, l, n));
    }

    llama_aircache_buffers fresh(specs);

    // the observers' rows, one range after the other
    const auto live = by_row();

    for (uint32_t l = 0; l < kv.n_layer() && !live.empty(); ++l) {
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

void llama_aircache_observers::observe(llama_seq_id seq, const llama_aircache_span * spans, int32_t n_spans, llama_pos pos_end,
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

    obs->first_query = obs->n_text - needs.n_text;
    obs->n_last      = std::min<uint64_t>({ needs.n_last, kv.n_cells(), max_visual(spans, n_spans, kv.hparams().n_pos_per_embd() > 1) });
    obs->seen.resize(obs->n_text, 0);
    obs->last_cell.resize(obs->n_last, UINT32_MAX);
    if (is_template) {
        obs->is_template.assign(is_template, is_template + obs->n_text);
    }

    if (needs.sum) {
        std::vector<llama_aircache_buffers::spec> specs;
        for (uint32_t l = 0; l < kv.n_layer(); ++l) {
            specs.push_back({ ggml_backend_buffer_get_type(kv.k(l)->buffer), GGML_TYPE_F32, kv.n_cells(), 1 });
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

void llama_aircache_observers::forget(llama_seq_id seq) {
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

const llama_aircache_observer * llama_aircache_observers::find(llama_seq_id seq) const {
    const auto it = observers.find(seq);
    return it == observers.end() ? nullptr : it->second.get();
}

llama_aircache_observer * llama_aircache_observers::find(llama_seq_id seq) {
    return const_cast<llama_aircache_observer *>(std::as_const(*this).find(seq));
}

const llama_aircache_observer * llama_aircache_observers::summing(uint32_t stream) const {
    for (const auto & [seq, obs] : observers) {
        if (obs->sum() && kv.stream(seq) == stream) {
            return obs.get();
        }
    }
    return nullptr;
}

llama_aircache_observed llama_aircache_observers::observed(const llama_ubatch & ubatch) {
    llama_aircache_observed res;

    std::map<llama_aircache_observer *, uint32_t> n_visual;

    // From the last token on: of the visual ones only the last n_last of a sequence find room in its ring, and two that
    // write the same row would do so in any order.
    for (uint32_t t = observers.empty() ? 0 : ubatch.n_tokens; t-- > 0;) {
        // a graph that is only reserved has no sequences
        auto * obs = ubatch.seq_id[t] ? find(ubatch.seq_id[t][0]) : nullptr;
        if (!obs) {
            continue;
        }

        const llama_pos pos   = ubatch.pos[t];
        const int32_t   query = obs->text_query(pos);

        if (obs->sum() && pos >= obs->spans[0].p0 && pos < obs->pos_end) {
            res.sum = obs;
            res.summed.push_back(t);
        }
        if (query >= (int32_t) obs->first_query) {
            res.queries.push_back({ t, query, obs });
        } else if (query < 0 && obs->is_visual(pos) && n_visual[obs]++ < obs->n_last) {
            res.queries.push_back({ t, -1, obs });
        }
    }

    std::reverse(res.queries.begin(), res.queries.end());

    return res;
}
