// Closing up the cache: method section 3.
#include "graph/aircache-run.h"

#include <algorithm>

// Rows of K or V as 32-bit words, so that they are moved as they are, whatever the cache's type.
static ggml_tensor * words(ggml_context * ctx, ggml_tensor * t, uint32_t i0, uint32_t n) {
    ggml_tensor * res = ggml_view_2d(ctx, t, t->ne[0], n, t->nb[1], i0*t->nb[1]);

    res->type  = GGML_TYPE_I32;
    res->ne[0] = t->nb[1]/sizeof(int32_t);
    res->nb[0] = sizeof(int32_t);
    res->nb[1] = t->nb[1];
    res->nb[2] = res->nb[1]*n;
    res->nb[3] = res->nb[2];

    return res;
}

// Cells [i0, i0 + n) of a transposed V: [n, n_embd].
static ggml_tensor * columns(ggml_context * ctx, ggml_tensor * v, uint32_t i0, uint32_t n) {
    return ggml_view_2d(ctx, v, n, v->ne[0], ggml_row_size(v->type, v->ne[1]), ggml_row_size(v->type, i0));
}

void llama_aircache_run_evict(llama_context * lctx, llama_aircache & air, llama_seq_id seq, const llama_aircache::layout & lay) {
    llama_aircache_graph graph(lctx, air, 24*air.n_layer());

    auto * ctx = graph.ctx();

    const uint32_t s = air.stream(seq);

    for (uint32_t l = 0; l < air.n_layer(); ++l) {
        const auto & rows = lay.rows[l];

        // rows that lie right already, e.g. text before the first image when nothing of it moves
        uint32_t skip = 0;
        while (skip < rows.size() && rows[skip] == lay.start[l] + skip) {
            skip++;
        }
        if (skip == rows.size()) {
            continue;
        }

        ggml_tensor * idx = graph.input_i32({ rows.begin() + skip, rows.end() });

        const uint32_t i0 = lay.start[l] + skip;
        const uint32_t n  = rows.size() - skip;

        // source and target overlap: gather into scratch first
        const auto move_rows = [&](ggml_tensor * t) {
            ggml_tensor * src = ggml_get_rows(ctx, words(ctx, t, 0, t->ne[1]), idx);
            ggml_build_forward_expand(graph.gf(), ggml_cpy(ctx, src, words(ctx, t, i0, n)));
        };
        const auto move_columns = [&](ggml_tensor * t) {
            const uint32_t n_used = *std::max_element(rows.begin(), rows.end()) + 1;
            ggml_tensor * src = ggml_cont(ctx, ggml_transpose(ctx, columns(ctx, t, 0, n_used)));
            src = ggml_get_rows(ctx, src, idx); // F32, which f16 and bf16 pass through unchanged
            ggml_build_forward_expand(graph.gf(), ggml_cpy(ctx, ggml_transpose(ctx, src), columns(ctx, t, i0, n)));
        };

        move_rows(air.k(l, s));
        if (air.v_trans()) {
            move_columns(air.v(l, s));
        } else {
            move_rows(air.v(l, s));
        }
    }

    if (ggml_graph_n_nodes(graph.gf()) > 0) {
        graph.run();
    }
}
