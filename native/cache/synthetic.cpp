#include "cache/synthetic.h"

#include "llama-hparams.h"
#include "llama-kv-cells.h"

#include <algorithm>
#include <cmath>
#include <new>

static bool is_2d(const llama_aircache & air) {
    return air.kv.hparams().n_pos_per_embd() > 1;
}

static int64_t span_cells(const llama_aircache & air, const llama_aircache_span & span) {
    const int64_t n = span.p1 - span.p0;
    return is_2d(air) ? n*span.nx : n;
}

int64_t llama_aircache_synthetic_cells(const llama_aircache & air, const llama_aircache_synthetic_prompt & prompt) {
    int64_t res = prompt.pos_end;
    for (int32_t i = 0; i < prompt.n_spans; ++i) {
        const auto & span = prompt.spans[i];
        res += span_cells(air, span) - (span.p1 - span.p0);
    }
    return res;
}

namespace {

// Independent numbers with mean 0 and deviation 1, evenly distributed (xorshift64*): keys and values after norm and
// projection are about as large, and what attention costs does not depend on them.
struct numbers {
    uint64_t state;

    numbers(uint32_t seed, uint64_t stream) : state((seed + 1)*0x9e3779b97f4a7c15ull ^ (stream + 1)*0xd1342543de82ef95ull) {
        state |= 1;
    }

    void fill(std::vector<float> & out) {
        constexpr float scale = 1.7320508f/2147483648.0f; // sqrt(3) / 2^31
        for (auto & x : out) {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            x = scale*(int32_t) (state*0x2545f4914f6cdd1dull >> 32);
        }
    }
};

constexpr uint32_t ROWS = 256; // that are written at once

// rows [i0, i0 + n) of a tensor, in its own type
void fill_rows(ggml_tensor * t, uint32_t i0, uint32_t n, numbers random) {
    std::vector<float>   values;
    std::vector<uint8_t> bytes;
    for (uint32_t i = 0; i < n; i += ROWS) {
        const uint32_t n_rows = std::min(ROWS, n - i);
        values.resize(n_rows*t->ne[0]);
        bytes.resize(n_rows*t->nb[1]);
        random.fill(values);
        ggml_quantize_chunk(t->type, values.data(), bytes.data(), 0, n_rows, t->ne[0], nullptr);
        ggml_backend_tensor_set(t, bytes.data(), (i0 + i)*t->nb[1], bytes.size());
    }
}

// the first n cells of V by channel: [n_cells, n_embd] in memory
void fill_channels(ggml_tensor * t, uint32_t n, numbers random) {
    std::vector<float>   values(n);
    std::vector<uint8_t> bytes(ggml_row_size(t->type, n));
    for (int64_t c = 0; c < t->ne[0]; ++c) {
        random.fill(values);
        ggml_quantize_chunk(t->type, values.data(), bytes.data(), 0, 1, n, nullptr);
        ggml_backend_tensor_set(t, bytes.data(), c*ggml_row_size(t->type, t->ne[1]), bytes.size());
    }
}

// the table of a decoded prompt; visual: its visual cells, in order
llama_kv_cells make_table(const llama_aircache & air, llama_seq_id seq, const llama_aircache_synthetic_prompt & prompt, std::vector<uint32_t> & visual) {
    llama_kv_cells res;
    res.resize(air.kv.n_rows());

    uint32_t i = 0;
    const auto put = [&](llama_pos pos, llama_pos x, llama_pos y, llama_token token) {
        llama_kv_cell_ext ext;
        if (is_2d(air)) {
            ext.x = x;
            ext.y = y;
        }
        ext.tok = token;
        res.pos_set(i, pos);
        res.ext_set(i, ext);
        res.seq_add(i, seq);
        i++;
    };
    const auto put_text = [&](llama_pos p0, llama_pos p1) {
        for (llama_pos pos = p0; pos < p1; ++pos) {
            put(pos, pos, pos, 0);
        }
    };

    llama_pos pos = 0;
    for (int32_t s = 0; s < prompt.n_spans; ++s) {
        const auto & span = prompt.spans[s];
        put_text(pos, span.p0);
        for (int64_t n = span_cells(air, span), c = 0; c < n; ++c) {
            visual.push_back(i);
            if (is_2d(air)) {
                put(span.p0, span.p0 + c % span.nx, span.p0 + c/span.nx, LLAMA_TOKEN_NULL);
            } else {
                put(span.p0 + c, 0, 0, LLAMA_TOKEN_NULL);
            }
        }
        pos = span.p1;
    }
    put_text(pos, prompt.pos_end);

    return res;
}

} // namespace

void llama_aircache_synthesise(llama_aircache & air, llama_seq_id seq, const llama_aircache_synthetic_prompt & prompt, uint32_t seed,
        const llama_aircache_method & method) {
    const uint32_t s = air.kv.stream(seq);
    const uint32_t n = llama_aircache_synthetic_cells(air, prompt);

    if (!air.make_room(s, n)) {
        throw std::bad_alloc();
    }

    std::vector<uint32_t> visual;
    auto table = make_table(air, seq, prompt, visual);

    air.observers.observe(seq, prompt.spans, prompt.n_spans, prompt.pos_end, method, nullptr);
    auto & obs = *air.observers.find(seq);

    try {
        for (uint32_t l = 0; l < air.kv.n_layer(); ++l) {
            fill_rows(air.kv.k(l, s), 0, n, { seed, 3*l });
            if (air.kv.v_trans()) {
                fill_channels(air.kv.v(l, s), n, { seed, 3*l + 1 });
            } else {
                fill_rows(air.kv.v(l, s), 0, n, { seed, 3*l + 1 });
            }
            if (obs.n_rows() > 0) {
                fill_rows(air.observers.queries(l), obs.row0, obs.n_rows(), { seed, 3*l + 2 });
            }
            if (air.observers.kq_scale[l] == 0.0f) { // no graph of the model observed anything yet
                const auto & hparams = air.kv.hparams();
                air.observers.kq_scale[l] = hparams.f_attention_scale != 0.0f ? hparams.f_attention_scale
                        : 1.0f/sqrtf(hparams.n_embd_head_k(air.kv.layer_il(l)));
            }
        }
        std::fill(obs.seen.begin() + obs.first_query, obs.seen.end(), 1);
        for (size_t i = visual.size() - std::min<size_t>(obs.n_last, visual.size()); i < visual.size(); ++i) {
            obs.next_query(visual[i]);
        }
        obs.synthetic = true;
    } catch (...) {
        air.observers.forget(seq);
        air.kv.release(s);
        throw;
    }

    air.kv.set_cells(s, std::move(table), n);
}
