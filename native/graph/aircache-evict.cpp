// Closing up the cache: method section 3.
#include "graph/aircache-run.h"

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

        for (ggml_tensor * t : { air.k(l, s), air.v(l, s) }) {
            // source and target overlap: gather into scratch first
            ggml_tensor * src = ggml_get_rows(ctx, words(ctx, t, 0, t->ne[1]), idx);
            ggml_tensor * dst = words(ctx, t, lay.start[l] + skip, rows.size() - skip);

            ggml_build_forward_expand(graph.gf(), ggml_cpy(ctx, src, dst));
        }
    }

    if (ggml_graph_n_nodes(graph.gf()) > 0) {
        graph.run();
    }
}
